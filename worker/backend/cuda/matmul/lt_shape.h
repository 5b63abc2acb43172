// What a cuBLASLt algorithm is kept by: shapes that may share one.
//
// Thread rule: pure functions.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

namespace loopserve::worker::cuda {

// The size of x for which an algorithm is asked: every size for few rows, steps of about an eighth
// of the size for many, so that prompts of any length meet few searches.
inline int64_t RowBucket(int64_t rows) {
  if (rows <= 16) return rows;
  const int64_t step =
      std::max<int64_t>(16, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows))) / 8);
  return (rows + step - 1) / step * step;
}

// The largest power of two up to 256 that divides an address and the bytes of a row.
inline uint32_t AlignmentOf(uint64_t address, uint64_t row_bytes) {
  const uint64_t bits = address | row_bytes | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// What a product multiplies, which decides how the library is asked for it.
enum class LtOperands : uint8_t {
  kBf16,
  kE4m3,        // sums of codes as they are
  kScaledE4m3,  // sums times a factor of x's row and one of the weight's
};

struct LtKey {
  LtOperands operands = LtOperands::kBf16;
  int64_t rows = 0;  // a RowBucket
  int64_t n = 0;
  int64_t k = 0;
  int64_t weight_pitch = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  bool out_bf16 = false;
  uint32_t weight_alignment = 0;
  uint32_t x_alignment = 0;
  uint32_t out_alignment = 0;

  bool operator==(const LtKey&) const = default;
  template <class H>
  friend H AbslHashValue(H h, const LtKey& key) {
    return H::combine(std::move(h), key.operands, key.rows, key.n, key.k, key.weight_pitch,
                      key.x_stride, key.out_stride, key.out_bf16, key.weight_alignment,
                      key.x_alignment, key.out_alignment);
  }
};

}  // namespace loopserve::worker::cuda
