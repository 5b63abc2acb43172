// How quantised matrices lie in device memory: records of 16 rows by 128 columns, in the order in
// which the lanes of a warp feed them to a tensor core.
//
// A matrix is [row tiles][column tiles] records, each 16-byte aligned and padded with zero scales
// where the matrix ends. A record holds, one after the other,
//   low bits   4 (or 8) bits of each code
//   high bits  the other 1 or 2 bits of formats with 5 or 6
//   scales     what the file has for each group of 32 values (Q6_K: two scales of 16 values)
//   supers     Q4_K and Q6_K: the f16 factors of a file block, repeated in its records
// so that a warp reads every part with one coalesced load per 512 bytes, and a row tile as one
// stream. Codes and scales are exactly the file's.
//
// In a group of 32 columns, lane 4 * (row % 8) + c holds the eight values of the columns 4c ...
// 4c+3 (j = 0 ... 3) and 16 + 4c ... 16 + 4c+3 (j = 4 ... 7): the operands of two products of 16
// columns. Values 2i and 2i + 1 lie 16 bits apart, so one mask takes a pair of them out of a word.
//
// Thread rule: constants and pure functions, for host and device.
#pragma once

#include <cstdint>

#include "worker/backend/host_device.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kTileCols = 128;
inline constexpr int kGroupCols = 32;
inline constexpr int kTileGroups = kTileCols / kGroupCols;

// Sizes in bits per value, or in bytes per row and group (scale), or per row (super).
struct RecordLayout {
  int low_bits = 0;
  int high_bits = 0;
  int scale_bytes = 0;
  int super_bytes = 0;
  int centre = 0;  // value = scale * (code - centre) [+ or - a minimum]; Q8_0: codes are int8

  LOOPSERVE_HOST_DEVICE constexpr int high_at() const {
    return kTileRows * kTileCols * low_bits / 8;
  }
  LOOPSERVE_HOST_DEVICE constexpr int scale_at() const {
    return high_at() + kTileRows * kTileCols * high_bits / 8;
  }
  LOOPSERVE_HOST_DEVICE constexpr int super_at() const {
    return scale_at() + kTileRows * kTileGroups * scale_bytes;
  }
  LOOPSERVE_HOST_DEVICE constexpr int bytes() const { return super_at() + kTileRows * super_bytes; }
};

// All zeros for the types that are kept as bf16.
LOOPSERVE_HOST_DEVICE constexpr RecordLayout LayoutOf(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return {4, 0, 2, 0, 8};
    case WeightType::kQ4_1:
      return {4, 0, 4, 0, 0};
    case WeightType::kQ5_0:
      return {4, 1, 2, 0, 16};
    case WeightType::kQ5_1:
      return {4, 1, 4, 0, 0};
    case WeightType::kQ8_0:
      return {8, 0, 2, 0, 0};
    case WeightType::kQ4_K:
      return {4, 0, 2, 4, 0};
    case WeightType::kQ6_K:
      return {4, 2, 2, 4, 32};
    default:
      return {};
  }
}

// Where a value of a record lies: which lane holds it, and as which of the lane's values.
struct ValuePlace {
  int half;   // rows 0-7 or 8-15
  int lane;   // of the warp
  int group;  // of 32 columns
  int j;      // of the lane's eight values of the group
};

LOOPSERVE_HOST_DEVICE constexpr ValuePlace PlaceOf(int row, int col) {
  const int in_group = col % kGroupCols;
  return {row / 8, (row % 8) * 4 + (in_group % 16) / 4, col / kGroupCols,
          (in_group / 16) * 4 + in_group % 4};
}

// Bits of a 32-bit word; `word` counts from the record's beginning.
struct BitPlace {
  int word;
  int shift;
};

LOOPSERVE_HOST_DEVICE constexpr BitPlace LowBitsOf(const RecordLayout& layout, ValuePlace p) {
  if (layout.low_bits == 8) {
    return {p.half * 256 + (p.group / 2) * 128 + p.lane * 4 + (p.group % 2) * 2 + p.j / 4,
            (p.j % 2) * 16 + ((p.j / 2) % 2) * 8};
  }
  return {p.half * 128 + p.lane * 4 + p.group, (p.j % 2) * 16 + (p.j / 2) * 4};
}

LOOPSERVE_HOST_DEVICE constexpr BitPlace HighBitsOf(const RecordLayout& layout, ValuePlace p) {
  const int first = layout.high_at() / 4;
  if (layout.high_bits == 2) {
    return {first + p.lane * 4 + p.half * 2 + p.group / 2,
            (p.j % 2) * 16 + (p.group % 2) * 8 + (p.j / 2) * 2};
  }
  return {first + p.lane * 2 + p.half, (p.j % 2) * 16 + p.group * 4 + p.j / 2};
}

// Byte offsets in the record of what the file has for a row's group, and for a row.
LOOPSERVE_HOST_DEVICE constexpr int ScaleAt(const RecordLayout& layout, int row, int group) {
  return layout.scale_at() + (((row % 8) * 2 + row / 8) * kTileGroups + group) * layout.scale_bytes;
}
LOOPSERVE_HOST_DEVICE constexpr int SuperAt(const RecordLayout& layout, int row) {
  return layout.super_at() + ((row % 8) * 2 + row / 8) * layout.super_bytes;
}

LOOPSERVE_HOST_DEVICE constexpr int64_t TilesOf(int64_t values, int64_t tile) {
  return (values + tile - 1) / tile;
}

// Values from one row of a bf16 matrix to the next: rows begin on 16 bytes, padded with zeros.
LOOPSERVE_HOST_DEVICE constexpr int64_t Bf16Pitch(int64_t cols) { return (cols + 7) / 8 * 8; }

}  // namespace loopserve::worker::cuda
