// Views of activations: row-major matrices in a backend's memory, with a row stride so that a
// column range (one shard's heads, one third of a fused projection) is a view too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loopserve::worker {

// How a buffer's values lie in memory. Host backends have float32 only.
enum class ActivationType : uint8_t { kF32, kBf16 };

constexpr size_t BytesOf(ActivationType type) { return type == ActivationType::kF32 ? 4 : 2; }

struct TensorView {
  float* data = nullptr;  // the address of the first value, whatever its type
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // values from one row to the next
  ActivationType type = ActivationType::kF32;

  float* row(int64_t r) const { return At(r * stride); }
  TensorView Rows(int64_t first, int64_t count) const {
    return {At(first * stride), count, cols, stride, type};
  }
  TensorView Cols(int64_t first, int64_t count) const {
    return {At(first), rows, count, stride, type};
  }

 private:
  float* At(int64_t value) const {
    if (type == ActivationType::kF32) return data + value;
    return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(data) +
                                    value * static_cast<int64_t>(BytesOf(type)));
  }
};

}  // namespace loopserve::worker
