// Matrix product of one packed panel with rows rounded to 16 bits, or to 8, for any instruction
// set.
//
// S is a class of the instruction set's vectors (see kernels_avx512.cc). It lives in the anonymous
// namespace of its translation unit, so each instantiation stays there too. kPlanes is the number
// of 8-bit planes of a rounded row, two or one. The order of operations per output is the same for
// every number of rows: integer dot product of a block, then one multiply-add with its scales.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/packing.h"

namespace loopserve::worker::cpu {

// Up to kRowTile rows rounded block by block, as planes of 8 bits that integer dot products take
// one after the other: x = scale * v, where v = 256 * q[0] + q[1], or q[0] of a single plane.
struct QuantTile {
  int8_t* q;          // [blocks, kPlanes, kRowTile, kBlockValues], each within -127 ... 127
  float* scale;       // [blocks, kRowTile]
  float* scaled_sum;  // [blocks, kRowTile]: scale times the sum of v
  int32_t* half_sum;  // [blocks, kRowTile, 2]: sums of v over each half of the block
};

// One tile of rows; the panel is not in the cache yet if `prefetch`.
struct MatMulTile {
  const std::byte* panel;
  int64_t cols;
  const float* x;
  int64_t x_stride;
  QuantTile quant;
  int rows;
  int outputs;
  bool prefetch;
  float* out;
  int64_t out_stride;
};

// A panel's vectors at lanes [first, first + kNv * W) of its outputs.
template <class S, int kPlanes>
struct MatMulKernels {
  using F = typename S::F;
  using I = typename S::I;
  static constexpr int kActivationBits = 8 * kPlanes;
  static constexpr int kW = S::kWidth;
  static constexpr int kNv = S::kOutputVectors;
  static constexpr int kLanes = kW * kNv;  // outputs of one pass

  template <BlockLayout L>
  static F LoadScale(const uint8_t* at, int lane) {
    if constexpr (L.wide) {
      return S::Load(reinterpret_cast<const float*>(at) + lane);
    } else {
      return S::LoadF16(reinterpret_cast<const uint16_t*>(at) + lane);
    }
  }

  // Codes of column groups g and g + 4 of one vector of outputs.
  template <BlockLayout L>
  static void LoadCodes(const uint8_t* block, int g, int lane, I& low, I& high) {
    constexpr size_t kCodesAt = L.codes_at();
    constexpr size_t kGroup = kPanelOutputs * 4;
    const uint8_t* codes = block + kCodesAt + size_t(lane) * 4;
    if constexpr (L.codes == Codes::kBytes) {
      low = S::LoadBytes(codes + size_t(g) * kGroup);
      high = S::LoadBytes(codes + size_t(g + 4) * kGroup);
    } else {
      const I both = S::LoadBytes(codes + size_t(g) * kGroup);
      low = S::LowNibbles(both);
      high = S::HighNibbles(both);
      if constexpr (L.codes == Codes::kFiveBits) {
        constexpr size_t kBitsAt = L.bits_at();
        const uint8_t* bits = block + kBitsAt + size_t(lane) / 2;
        low = S::AddFifthBits(low, bits + size_t(g) * (kGroup / 8));
        high = S::AddFifthBits(high, bits + size_t(g + 4) * (kGroup / 8));
      }
    }
  }

  // Some instruction sets cannot multiply the full range of unsigned bytes: then signed codes.
  template <BlockLayout L>
  static constexpr bool kSigned = L.offset == 128 && !S::kFullUnsigned;

  template <BlockLayout L>
  static I Dot(I sum, I codes, const int8_t* q) {
    if constexpr (kSigned<L>) {
      return S::DotSigned(sum, codes, q);
    } else {
      return S::Dot(sum, codes, q);
    }
  }

  // Of both halves. Sums of rows that are not numbers may be anything, so they are added unsigned.
  static int32_t Sum(const int32_t* halves) {
    return static_cast<int32_t>(static_cast<uint32_t>(halves[0]) +
                                static_cast<uint32_t>(halves[1]));
  }

  // Unsigned codes have the offset in them, times the sum of the row's values.
  template <BlockLayout L>
  static I RemoveOffset(I dot, int32_t sum) {
    if constexpr (kSigned<L> || L.offset == 0) {
      return dot;
    } else {
      const auto offset = static_cast<uint32_t>(L.offset) * static_cast<uint32_t>(sum);
      return S::AddInt(dot, S::SetInt(static_cast<int32_t>(0u - offset)));
    }
  }

  // Adds columns of groups [kFrom, kTo) and the same + 4 if kHigh, or of one half of the block.
  template <BlockLayout L, int MR>
  static void DotBlock(const uint8_t* block, int lane, const int8_t* q, I (&low_dot)[MR][kNv],
                       I (&high_dot)[MR][kNv]) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      I low[kNv];
      I high[kNv];
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) LoadCodes<L>(block, g, lane + v * kW, low[v], high[v]);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        const int8_t* four = q + r * kBlockValues + g * 4;
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) {
          low_dot[r][v] = Dot<L>(low_dot[r][v], low[v], four);
          high_dot[r][v] = Dot<L>(high_dot[r][v], high[v], four + 16);
        }
      }
    }
  }

  // One scale per block: both halves run into one sum.
  template <BlockLayout L, int MR>
  static void DotWhole(const uint8_t* block, int lane, const int8_t* q, I (&dot)[MR][kNv]) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      I low[kNv];
      I high[kNv];
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) LoadCodes<L>(block, g, lane + v * kW, low[v], high[v]);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        const int8_t* four = q + r * kBlockValues + g * 4;
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) dot[r][v] = Dot<L>(dot[r][v], low[v], four);
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) dot[r][v] = Dot<L>(dot[r][v], high[v], four + 16);
      }
    }
  }

  // The integer dot products of a block with the planes of MR rows; `high` is the second half's.
  template <BlockLayout L, int MR>
  static void DotPlanes(const uint8_t* block, int lane, const int8_t* q, const int32_t* sums,
                        I (&dot)[MR][kNv], I (&high)[MR][kNv]) {
#pragma GCC unroll 2
    for (int plane = 0; plane < kPlanes; ++plane, q += kRowTile * kBlockValues) {
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) {
          dot[r][v] = plane == 0 ? S::Zero() : S::ShiftLeft8(dot[r][v]);
          if constexpr (L.halves) high[r][v] = plane == 0 ? S::Zero() : S::ShiftLeft8(high[r][v]);
        }
      }
      if constexpr (L.halves) {
        DotBlock<L, MR>(block, lane, q, dot, high);
      } else {
        DotWhole<L, MR>(block, lane, q, dot);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) {
        dot[r][v] = RemoveOffset<L>(dot[r][v], L.halves ? sums[2 * r] : Sum(sums + 2 * r));
        if constexpr (L.halves) high[r][v] = RemoveOffset<L>(high[r][v], sums[2 * r + 1]);
      }
    }
  }

  template <BlockLayout L, int MR>
  static void AddBlock(const uint8_t* block, int lane, const QuantTile& a, int64_t b, int row0,
                       F (&acc)[MR][kNv]) {
    const int64_t at = b * kRowTile + row0;
    I dot[MR][kNv];
    I high[MR][kNv];
    DotPlanes<L, MR>(block, lane, a.q + (b * kPlanes * kRowTile + row0) * kBlockValues,
                     a.half_sum + at * 2, dot, high);
    constexpr size_t kMinAt = L.min_at();
#pragma GCC unroll 4
    for (int v = 0; v < kNv; ++v) {
      const F scale = LoadScale<L>(block, lane + v * kW);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        const F row_scale = S::Set1(a.scale[at + r]);
        acc[r][v] = S::Fma(S::Mul(scale, row_scale), S::FromInt(dot[r][v]), acc[r][v]);
        if constexpr (L.halves) {
          const F second = LoadScale<L>(block + kPanelOutputs * 4, lane + v * kW);
          acc[r][v] = S::Fma(S::Mul(second, row_scale), S::FromInt(high[r][v]), acc[r][v]);
        }
      }
      if constexpr (L.has_min) {
        const F min = LoadScale<L>(block + kMinAt, lane + v * kW);
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          acc[r][v] = S::Fma(min, S::Set1(a.scaled_sum[at + r]), acc[r][v]);
        }
      }
    }
  }

  template <int MR>
  static void StoreTile(const MatMulTile& tile, int row0, int lane, const F (&acc)[MR][kNv]) {
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      float* out = tile.out + (row0 + r) * tile.out_stride;
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) {
        const int n = tile.outputs - (lane + v * kW);
        if (n >= kW) {
          S::Store(out + lane + v * kW, acc[r][v]);
        } else if (n > 0) {
          S::StoreN(out + lane + v * kW, acc[r][v], n);
        }
      }
    }
  }

  template <BlockLayout L, int MR>
  static void QuantRows(const MatMulTile& tile, int row0) {
    constexpr size_t kBytes = L.bytes();
    const int64_t blocks = tile.cols / kBlockValues;
    for (int lane = 0; lane < tile.outputs; lane += kLanes) {
      F acc[MR][kNv];
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) acc[r][v] = S::Set1(0.0f);
      }
      const auto* block = reinterpret_cast<const uint8_t*>(tile.panel);
      for (int64_t b = 0; b < blocks; ++b, block += kBytes) {
        if (tile.prefetch) S::Prefetch(block + S::kPrefetchBytes, kBytes);
        AddBlock<L, MR>(block, lane, tile.quant, b, row0, acc);
      }
      StoreTile<MR>(tile, row0, lane, acc);
    }
  }

  template <WeightFloat T>
  static F LoadWeights(const std::byte* at, int64_t i) {
    if constexpr (T == WeightFloat::kF32) {
      return S::Load(reinterpret_cast<const float*>(at) + i);
    } else if constexpr (T == WeightFloat::kF16) {
      return S::LoadF16(reinterpret_cast<const uint16_t*>(at) + i);
    } else {
      return S::LoadBf16(reinterpret_cast<const uint16_t*>(at) + i);
    }
  }

  template <WeightFloat T, int MR>
  static void FloatRows(const MatMulTile& tile, int row0) {
    const float* x = tile.x + row0 * tile.x_stride;
    for (int lane = 0; lane < tile.outputs; lane += kLanes) {
      F acc[MR][kNv];
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) acc[r][v] = S::Set1(0.0f);
      }
      for (int64_t k = 0; k < tile.cols; ++k) {
        F w[kNv];
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) {
          w[v] = LoadWeights<T>(tile.panel, k * kPanelOutputs + lane + v * kW);
        }
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          const F value = S::Set1(x[r * tile.x_stride + k]);
#pragma GCC unroll 4
          for (int v = 0; v < kNv; ++v) acc[r][v] = S::Fma(w[v], value, acc[r][v]);
        }
      }
      StoreTile<MR>(tile, row0, lane, acc);
    }
  }

  // Cuts the tile's rows into register tiles.
  template <BlockLayout L>
  static void QuantTileRows(const MatMulTile& tile) {
    constexpr int kMr = S::kQuantRows;
    int row = 0;
    for (; row + kMr <= tile.rows; row += kMr) QuantRows<L, kMr>(tile, row);
    switch (tile.rows - row) {
      case 5:
        if constexpr (kMr > 5) QuantRows<L, 5>(tile, row);
        break;
      case 4:
        if constexpr (kMr > 4) QuantRows<L, 4>(tile, row);
        break;
      case 3:
        if constexpr (kMr > 3) QuantRows<L, 3>(tile, row);
        break;
      case 2:
        if constexpr (kMr > 2) QuantRows<L, 2>(tile, row);
        break;
      case 1:
        QuantRows<L, 1>(tile, row);
        break;
      default:
        break;
    }
  }

  template <WeightFloat T>
  static void FloatTileRows(const MatMulTile& tile) {
    switch (tile.rows) {
      case 6:
        return FloatRows<T, 6>(tile, 0);
      case 5:
        return FloatRows<T, 5>(tile, 0);
      case 4:
        return FloatRows<T, 4>(tile, 0);
      case 3:
        return FloatRows<T, 3>(tile, 0);
      case 2:
        return FloatRows<T, 2>(tile, 0);
      case 1:
        return FloatRows<T, 1>(tile, 0);
      default:
        return;
    }
  }

  // rows(tile) for each tile of the part.
  template <class Rows>
  static void ForTiles(const MatMulPart& part, Rows rows) {
    MatMulTile tile{.panel = part.panel,
                    .cols = part.cols,
                    .x = part.x,
                    .x_stride = part.x_stride,
                    .quant = {},
                    .rows = 0,
                    .outputs = part.outputs,
                    .prefetch = true,
                    .out = part.out,
                    .out_stride = part.out_stride};
    const std::byte* prepared = part.tiles;
    for (int64_t row = 0; row < part.rows; row += part.tile_rows, prepared += part.tile_bytes) {
      const int64_t left = part.rows - row;
      tile.rows = left < part.tile_rows ? static_cast<int>(left) : part.tile_rows;
      if (prepared != nullptr) {
        tile.quant = TileAt(const_cast<std::byte*>(prepared), part.cols);
      }
      rows(tile);
      tile.prefetch = false;
      tile.x += part.tile_rows * part.x_stride;
      tile.out += part.tile_rows * part.out_stride;
    }
  }
  template <BlockLayout L>
  static void Quant(const MatMulPart& part) {
    ForTiles(part, [](const MatMulTile& tile) { QuantTileRows<L>(tile); });
  }
  // Reads rows as they are, so the tiles are its own.
  template <WeightFloat T>
  static void Float(const MatMulPart& part) {
    MatMulPart own = part;
    own.tile_rows = EqualTiles(part.rows, kRowTile);
    ForTiles(own, [](const MatMulTile& tile) { FloatTileRows<T>(tile); });
  }
  static int TileRows(int64_t rows, int64_t) { return EqualTiles(rows, kRowTile); }

  // The first plane rounds x to 127 steps of the block's largest magnitude, the second what is
  // left.
  static void QuantizeRow(const float* x, int64_t cols, int r, const QuantTile& out) {
    constexpr int kParts = kBlockValues / kW;
    for (int64_t b = 0; b * kBlockValues < cols; ++b) {
      F part[kParts];
      F largest = S::Set1(0.0f);
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        part[i] = S::Load(x + b * kBlockValues + i * kW);
        largest = S::Max(largest, S::Abs(part[i]));
      }
      const float top = S::ReduceMax(largest);
      const int64_t at = b * kRowTile + r;
      const F inverse = S::Set1(top > 0 ? 127.0f / top : 0.0f);
      int8_t* first = out.q + (b * kPlanes * kRowTile + r) * kBlockValues;
      int8_t* second = first + kRowTile * kBlockValues;
      I sums[2] = {S::Zero(), S::Zero()};
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        const F steps = S::Mul(part[i], inverse);
        const I q = S::Round(steps);
        S::StoreInt8(first + i * kW, q);
        I value = q;
        if constexpr (kPlanes == 2) {
          const F left = S::Mul(S::Sub(steps, S::FromInt(q)), S::Set1(256.0f));
          const I rest = S::Round(S::Max(S::Min(left, S::Set1(127.0f)), S::Set1(-127.0f)));
          S::StoreInt8(second + i * kW, rest);
          value = S::AddInt(S::ShiftLeft8(q), rest);
        }
        sums[i * 2 / kParts] = S::AddInt(sums[i * 2 / kParts], value);
      }
      out.half_sum[at * 2] = S::ReduceAddInt(sums[0]);
      out.half_sum[at * 2 + 1] = S::ReduceAddInt(sums[1]);
      out.scale[at] = top / (kPlanes == 1 ? 127.0f : 127.0f * 256.0f);
      out.scaled_sum[at] = out.scale[at] * static_cast<float>(Sum(out.half_sum + at * 2));
    }
  }

  // A prepared tile is QuantTile's arrays one after the other, padded to cache lines.
  static size_t TileBytes(int64_t cols, int) {
    constexpr size_t kBlockBytes = size_t{kRowTile} * (kPlanes * kBlockValues + 4 + 4 + 2 * 4);
    return (static_cast<size_t>(cols / kBlockValues) * kBlockBytes + 63) / 64 * 64;
  }
  static QuantTile TileAt(std::byte* tile, int64_t cols) {
    const size_t rows = static_cast<size_t>(cols / kBlockValues) * kRowTile;
    auto* q = reinterpret_cast<int8_t*>(tile);
    auto* scale = reinterpret_cast<float*>(q + rows * kPlanes * kBlockValues);
    return {q, scale, scale + rows, reinterpret_cast<int32_t*>(scale + 2 * rows)};
  }
  static void Prepare(const float* x, int64_t stride, int rows, int64_t cols, int,
                      std::byte* tile) {
    const QuantTile out = TileAt(tile, cols);
    for (int r = 0; r < rows; ++r) QuantizeRow(x + r * stride, cols, r, out);
  }
  static size_t WorkspaceBytes(int64_t) { return 0; }
};

}  // namespace loopserve::worker::cpu
