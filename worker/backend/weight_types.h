// The number formats in which a model file stores its matrices, by their GGUF names, and the size
// of their blocks. A row of a matrix is a whole number of blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include "absl/strings/string_view.h"

#include "absl/status/status.h"

namespace loopserve::worker {

enum class WeightType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ6_K,
};

struct WeightTypeInfo {
  WeightType type;
  uint32_t gguf_id;        // ggml_type in the file
  absl::string_view name;  // "Q4_1"
  int32_t block_values;    // values per block
  int32_t block_bytes;     // bytes per block
};

const WeightTypeInfo& InfoOf(WeightType type);
// Nothing for a type that this build cannot read.
std::optional<WeightType> WeightTypeFromGguf(uint32_t gguf_id);

// A matrix (or, with rows = 1, a vector) as it lies in the model file: row-major [rows, cols], one
// row per output. The bytes belong to somebody else (the memory-mapped file) and are unaligned.
struct WeightView {
  WeightType type = WeightType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const std::byte> data;

  size_t row_bytes() const {
    const WeightTypeInfo& info = InfoOf(type);
    return static_cast<size_t>(cols / info.block_values) * static_cast<size_t>(info.block_bytes);
  }
};

// Decodes rows [first_row, first_row + n) to float32, n = out.size() / cols. The scalar definition
// of every format; fast kernels are tested against it. InvalidArgument when sizes do not fit.
absl::Status DequantizeRows(const WeightView& weight, int64_t first_row, std::span<float> out);

float Bf16ToFloat(uint16_t bits);
// Round to nearest, ties to even; NaN stays NaN.
uint16_t FloatToBf16(float value);
float Fp16ToFloat(uint16_t bits);
uint16_t FloatToFp16(float value);

}  // namespace loopserve::worker
