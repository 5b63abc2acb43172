// Codecs: how a warp reads a tile of 16 rows of a matrix as the A operands of
// mma.m16n8k16.row.col.f32.bf16.bf16.f32.
//
// In lane 4r + c, half h of a tile stands for row r + 8h. A group is 32 columns: two products. A
// codec has
//   Tile                     what a lane keeps of one tile, in registers
//   kGroups                  groups of a tile
//   kAdjacent                lane c holds the columns 8c ... 8c+7 of a group in this order;
//                            else 4c ... 4c+3 and 16+4c ... 16+4c+3, see packed_layout.h
//   RowOf(weight, row tile)  where a row tile lies
//   Load(row, tile, ...)     starts the loads of a tile
//   Operands(tile, g, a)     a[product][a0 ... a3]: codes, centred on zero, as bf16
//   Scale(tile, g, h, m)     by which sums of product m are multiplied (kTwoScales: m matters)
//   Min(tile, g, h)          what is added, times the sum of x, if kHasMin
//   kRowScales               whether finished sums are multiplied by SkinnyWeight::scales
#pragma once

#include "worker/backend/cuda/matmul/kernels/device_memory.cuh"
#include "worker/backend/cuda/matmul/packed_layout.h"

namespace loopserve::worker::cuda {

// One row tile of a matrix.
struct TileRow {
  const std::byte* data = nullptr;  // its first record, or the matrix' first value
  int64_t first_row = 0;
  int64_t rows = 0;  // of the matrix
  int64_t cols = 0;
};

__device__ __forceinline__ uint32_t SubBf16x2(uint32_t a, uint32_t b) {
  const __nv_bfloat162 d = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                   *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&d);
}

// Of a word that will be masked: its bits from `at` on come to lie at `to`.
__device__ __forceinline__ uint32_t MoveBits(uint32_t word, int at, int to) {
  return at >= to ? word >> (at - to) : word << (to - at);
}

__device__ __forceinline__ void Spread(const uint4& v, uint32_t (&to)[4]) {
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

// What codecs of matrices that lie row by row share: no scales but those of whole rows.
struct RowsCodec {
  static constexpr bool kAdjacent = true;
  static constexpr bool kScaled = false;
  static constexpr bool kTwoScales = false;
  static constexpr bool kHasMin = false;

  static __device__ __forceinline__ TileRow RowOf(const SkinnyWeight& weight, int64_t row_tile,
                                                  int64_t cols) {
    return {static_cast<const std::byte*>(weight.data), row_tile * kTileRows, weight.rows, cols};
  }
  // The row that a lane loads for half `h` of a tile; the last one stands in for those beyond it.
  static __device__ __forceinline__ int64_t RowAt(const TileRow& from, int lane, int h) {
    const int64_t wanted = from.first_row + lane / 4 + 8 * h;
    return wanted < from.rows ? wanted : from.rows - 1;
  }
  template <typename Tile>
  static __device__ __forceinline__ float Scale(const Tile&, int, int, int) {
    return 1.0f;
  }
  template <typename Tile>
  static __device__ __forceinline__ float Min(const Tile&, int, int) {
    return 0.0f;
  }
};

struct Bf16Codec : RowsCodec {
  static constexpr int kGroups = 2;
  static constexpr bool kRowScales = false;
  struct Tile {
    uint32_t words[kGroups][2][4];
  };

  static __device__ __forceinline__ void Load(const TileRow& from, int64_t tile, int lane,
                                              Tile& to) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto* values =
          reinterpret_cast<const __nv_bfloat16*>(from.data) + RowAt(from, lane, h) * from.cols;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int64_t k = (tile * kGroups + g) * kGroupCols + (lane % 4) * 8;
        Spread(k < from.cols ? LoadStream16(values + k) : uint4{0, 0, 0, 0}, to.words[g][h]);
      }
    }
  }
  static __device__ __forceinline__ void Operands(const Tile& tile, int g, uint32_t (&a)[2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        a[m][h] = tile.words[g][h][2 * m];
        a[m][h + 2] = tile.words[g][h][2 * m + 1];
      }
    }
  }
};

// All types that are packed in records.
template <WeightType kType>
struct PackedCodec {
  static constexpr RecordLayout kLayout = LayoutOf(kType);
  static constexpr int kGroups = kTileGroups;
  static constexpr bool kAdjacent = false;
  static constexpr bool kScaled = true;
  static constexpr bool kTwoScales = kType == WeightType::kQ6_K;
  static constexpr bool kHasMin =
      kType == WeightType::kQ4_1 || kType == WeightType::kQ5_1 || kType == WeightType::kQ4_K;
  static constexpr bool kRowScales = false;
  static constexpr int kLowLoads = kLayout.low_bits == 8 ? 4 : 2;
  static constexpr int kScaleLoads = kLayout.scale_bytes / 2;

  struct Tile {
    uint32_t low[kLowLoads][4];
    uint32_t high[kLayout.high_bits == 0 ? 1 : 2 * kLayout.high_bits];
    uint32_t scale[kScaleLoads][4];
    uint32_t super[kLayout.super_bytes == 0 ? 1 : 2];
  };

  static __device__ __forceinline__ TileRow RowOf(const SkinnyWeight& weight, int64_t row_tile,
                                                  int64_t cols) {
    const int64_t bytes = row_tile * TilesOf(cols, kTileCols) * kLayout.bytes();
    return {static_cast<const std::byte*>(weight.data) + bytes, row_tile * kTileRows, weight.rows,
            cols};
  }

  static __device__ __forceinline__ void Load(const TileRow& from, int64_t tile, int lane,
                                              Tile& to) {
    const std::byte* record = from.data + tile * kLayout.bytes();
#pragma unroll
    for (int i = 0; i < kLowLoads; ++i) {
      Spread(LoadStream16(record + i * 512 + lane * 16), to.low[i]);
    }
    if constexpr (kLayout.high_bits == 1) {
      const uint2 v = LoadStream8(record + kLayout.high_at() + lane * 8);
      to.high[0] = v.x;
      to.high[1] = v.y;
    } else if constexpr (kLayout.high_bits == 2) {
      Spread(LoadStream16(record + kLayout.high_at() + lane * 16), to.high);
    }
    const std::byte* scales = record + kLayout.scale_at() + (lane / 4) * 16 * kScaleLoads;
#pragma unroll
    for (int i = 0; i < kScaleLoads; ++i) Spread(LoadStream16(scales + i * 16), to.scale[i]);
    if constexpr (kLayout.super_bytes != 0) {
      const uint2 v = LoadStream8(record + kLayout.super_at() + (lane / 4) * 8);
      to.super[0] = v.x;
      to.super[1] = v.y;
    }
  }

  static __device__ __forceinline__ void Operands(const Tile& tile, int g, uint32_t (&a)[2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][h + 2 * (i % 2)] = Pair(tile, g, h, i);
    }
  }
  static __device__ __forceinline__ float Scale(const Tile& tile, int g, int h, int m) {
    if constexpr (kType == WeightType::kQ4_K) {
      return HalfBits(tile.super[h] & 0xffffU) * static_cast<float>(ScaleBits(tile, g, h) & 0xffU);
    } else if constexpr (kType == WeightType::kQ6_K) {
      const uint32_t bits = ScaleBits(tile, g, h) >> (8 * m);
      return HalfBits(tile.super[h] & 0xffffU) *
             static_cast<float>(static_cast<int8_t>(bits & 0xffU));
    } else {
      return HalfBits(ScaleBits(tile, g, h) & 0xffffU);
    }
  }
  static __device__ __forceinline__ float Min(const Tile& tile, int g, int h) {
    if constexpr (kType == WeightType::kQ4_K) {
      return -HalfBits(tile.super[h] >> 16) *
             static_cast<float>((ScaleBits(tile, g, h) >> 8) & 0xffU);
    } else if constexpr (kHasMin) {
      return HalfBits(ScaleBits(tile, g, h) >> 16);
    } else {
      return 0.0f;
    }
  }

 private:
  // The values 2i and 2i + 1 of the lane's eight, of row half h.
  static __device__ __forceinline__ uint32_t Pair(const Tile& tile, int g, int h, int i) {
    if constexpr (kLayout.low_bits == 8) {
      // The value of an int8 is its low seven bits less 128 if the top one is set: both terms plus
      // 128 are bf16 numbers.
      const uint32_t word = tile.low[h * 2 + g / 2][(g % 2) * 2 + i / 2] >> (8 * (i % 2));
      return SubBf16x2((word & 0x007f007fU) | 0x43004300U, (word & 0x00800080U) | 0x43004300U);
    } else {
      uint32_t bits = ((tile.low[h][g] >> (4 * i)) & 0x000f000fU) | 0x43004300U;
      if constexpr (kLayout.high_bits == 1) {
        bits |= MoveBits(tile.high[h], g * 4 + i, 4) & 0x00100010U;
      } else if constexpr (kLayout.high_bits == 2) {
        bits |= MoveBits(tile.high[h * 2 + g / 2], (g % 2) * 8 + i * 2, 4) & 0x00300030U;
      }
      constexpr uint32_t bias = 0x4300U + static_cast<uint32_t>(kLayout.centre);
      return SubBf16x2(bits, bias << 16 | bias);
    }
  }
  // Two bytes (four where the file has a minimum) of row half h and group g.
  static __device__ __forceinline__ uint32_t ScaleBits(const Tile& tile, int g, int h) {
    if constexpr (kLayout.scale_bytes == 4) return tile.scale[h][g];
    return tile.scale[0][h * 2 + g / 2] >> (16 * (g % 2));
  }
};

}  // namespace loopserve::worker::cuda
