// Products of one panel with tiles of rows, on AVX-512: a block's codes are multiplied first and
// its scale is applied to the sum, so that weights enter exactly.
//
// A is the arithmetic: kernels_avx512_bf16.cc multiplies pairs of bf16, kernels_avx512_int8.cc four
// bytes at a time. A word is what one lane takes per instruction. A has
//
//     kBits                what rows are rounded to
//     kWords, kSteps       words of a block; words of each of its four groups
//     kRowValues           32-bit values per row and block behind the words
//     Sum                  a vector of sums within a block
//     kUnpacks             whether codes take work to unpack; that of nibbles hides beside products
//     Unpack<L>            kSteps words of one vector of outputs, in the order of a visit
//     WordOf<L>(g, i)      the row's word that step i of group g multiplies
//     Row                  what a block's sums of one row start and end with
//
// Few rows take the codes as they are unpacked in registers, and so do many where that costs
// nothing: it runs beside the products. Every way visits a block's words in the same order, and a
// row's sums are its own, so all give the same bits.
//
// A prepared tile is a stream of blocks: [kWords][tile rows] words, then [kRowValues][tile rows].
// Rows that are not there hold anything.
#pragma once

#ifdef __AVX512VNNI__

#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/packing.h"
#include "worker/backend/cpu/simd_avx512.h"

namespace loopserve::worker::cpu {
namespace {

template <class A>
struct BlockTiles {
  using F = Avx512::F;
  using I = Avx512::I;
  using Sum = typename A::Sum;
  static constexpr int kW = Avx512::kWidth;
  static constexpr int kNv = kPanelOutputs / kW;
  static constexpr int kActivationBits = A::kBits;
  static constexpr int kGroups = 4;
  static_assert(A::kWords == kGroups * A::kSteps);

  // A part of up to this many rows is cut into tiles of up to eight and never unpacks its panel: a
  // whole product of few rows, or one of so many columns that no more rows fit into a part. Where
  // nothing is unpacked, the columns do not matter.
  static constexpr int kFewRows = 48;
  static constexpr int kFewRowTile = 8;

  static int TileRows(int64_t rows, int64_t cols) {
    constexpr size_t kManyTiles = kFewRows / kRowTile + 1;
    const bool wide = A::kUnpacks && kManyTiles * TileBytes(cols, kRowTile) > kPartBytes;
    if (rows > kFewRows && !wide) return kRowTile;
    const int equal = EqualTiles(rows, kFewRowTile);
    return equal > kRowTile ? kFewRowTile : equal;
  }
  static constexpr size_t BlockBytes(int tile_rows) {
    return static_cast<size_t>((A::kWords + A::kRowValues) * tile_rows) * 4;
  }
  static size_t TileBytes(int64_t cols, int tile_rows) {
    return (static_cast<size_t>(cols / kBlockValues) * BlockBytes(tile_rows) + 63) / 64 * 64;
  }

  // Whether many rows share one unpacked copy of the panel.
  template <BlockLayout L>
  static constexpr bool kMayUnpack = L.codes == Codes::kNibbles ? false : A::kUnpacks;

  // An unpacked panel: [blocks][kWords][kPanelOutputs] words, in the order of a visit.
  static constexpr size_t kUnpackedBlockBytes = size_t{A::kWords} * kPanelOutputs * 4;
  static size_t WorkspaceBytes(int64_t cols) {
    if (!A::kUnpacks) return 0;
    return static_cast<size_t>(cols / kBlockValues) * kUnpackedBlockBytes;
  }

  template <BlockLayout L>
  static void UnpackPanel(const std::byte* panel, int64_t blocks, std::byte* to) {
    const auto* block = reinterpret_cast<const uint8_t*>(panel);
    for (int64_t b = 0; b < blocks; ++b, block += L.bytes()) {
      Avx512::Prefetch(block + Avx512::kPrefetchBytes, L.bytes());
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        I words[kNv][A::kSteps];
#pragma GCC unroll 2
        for (int v = 0; v < kNv; ++v) A::template Unpack<L>(block, g, v * kW, words[v]);
#pragma GCC unroll 4
        for (int i = 0; i < A::kSteps; ++i) {
#pragma GCC unroll 2
          for (int v = 0; v < kNv; ++v, to += 64) _mm512_store_si512(to, words[v][i]);
        }
      }
    }
  }

  // MR rows of a tile of TR, and NV vectors of outputs from vector `first` on.
  template <BlockLayout L, int TR, int MR, int NV, bool kUnpacked>
  struct Pass {
    using Row = typename A::template Row<L, TR>;
    const uint8_t* block;       // packed
    const std::byte* unpacked;  // if kUnpacked
    const std::byte* tile;      // the block's part of the prepared rows, from the first of MR on
    int first;

    [[gnu::always_inline]] inline void Words(int g, I (&words)[NV][A::kSteps]) const {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        if constexpr (kUnpacked) {
          const std::byte* from = unpacked + size_t(first + v) * 64;
#pragma GCC unroll 4
          for (int i = 0; i < A::kSteps; ++i) {
            words[v][i] = _mm512_load_si512(from + size_t((g * A::kSteps + i) * kNv) * 64);
          }
        } else {
          A::template Unpack<L>(block, g, (first + v) * kW, words[v]);
        }
      }
    }

    // Groups [kFrom, kTo) of the visit, which have one scale, and its product with their sums.
    template <int kFrom, int kTo>
    [[gnu::always_inline]] inline void AddRun(F (&acc)[MR][NV]) const {
      constexpr int kHalf = kFrom / (kGroups / 2);
      Sum sum[MR][NV];
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const Sum start = Row::template Start<kHalf>(tile, r);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[r][v] = start;
      }
#pragma GCC unroll 4
      for (int g = kFrom; g < kTo; ++g) {
        I words[NV][A::kSteps];
        Words(g, words);
#pragma GCC unroll 4
        for (int i = 0; i < A::kSteps; ++i) {
          const auto* x = reinterpret_cast<const int*>(tile) + A::template WordOf<L>(g, i) * TR;
#pragma GCC unroll 8
          for (int r = 0; r < MR; ++r) {
            const I word = _mm512_set1_epi32(x[r]);
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) sum[r][v] = A::Dot(sum[r][v], words[v][i], word);
          }
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const F scale = Scale<L>(block + kHalf * size_t{kPanelOutputs} * 4, first + v);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r)
          acc[r][v] = Row::AddScaled(tile, r, sum[r][v], scale, acc[r][v]);
      }
    }

    [[gnu::always_inline]] inline void AddMins(F (&acc)[MR][NV]) const {
      constexpr size_t kMinAt = L.min_at();
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const F min = Scale<L>(block + kMinAt, first + v);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          acc[r][v] = Avx512::Fma(min, _mm512_set1_ps(Row::RowSum(tile, r)), acc[r][v]);
        }
      }
    }

    [[gnu::always_inline]] inline void AddBlock(F (&acc)[MR][NV]) const {
      if constexpr (L.halves) {
        // Bytes lie in ascending columns: the first half of a visit is the first half of the block.
        static_assert(L.codes == Codes::kBytes);
        AddRun<0, 2>(acc);
        AddRun<2, 4>(acc);
      } else {
        AddRun<0, 4>(acc);
      }
      if constexpr (L.has_min) AddMins(acc);
    }
  };

  template <BlockLayout L>
  [[gnu::always_inline]] static inline F Scale(const uint8_t* at, int v) {
    return MatMulKernels<Avx512, 1>::LoadScale<L>(at, v * kW);
  }

  template <int MR, int NV>
  [[gnu::always_inline]] static inline void Store(const MatMulPart& part, int first, int rows,
                                                  const F (&acc)[MR][NV], float* out) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      if (r >= rows) return;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const int n = part.outputs - (first + v) * kW;
        float* to = out + r * part.out_stride + (first + v) * kW;
        if (n >= kW) {
          Avx512::Store(to, acc[r][v]);
        } else if (n > 0) {
          Avx512::StoreN(to, acc[r][v], n);
        }
      }
    }
  }

  // The first `rows` of MR rows are stored. `fresh`: the panel is not in the cache yet.
  template <BlockLayout L, int TR, int MR, int NV, bool kUnpacked>
  [[gnu::noinline]] static void Rows(const MatMulPart& part, const std::byte* tile, bool fresh,
                                     int first, int rows, float* out) {
    F acc[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_setzero_ps();
    }
    Pass<L, TR, MR, NV, kUnpacked> pass{reinterpret_cast<const uint8_t*>(part.panel),
                                        part.workspace, tile, first};
    for (int64_t b = 0; b < part.cols / kBlockValues; ++b) {
      if (!kUnpacked && fresh) Avx512::Prefetch(pass.block + Avx512::kPrefetchBytes, L.bytes());
      pass.AddBlock(acc);
      pass.block += L.bytes();
      if constexpr (kUnpacked) pass.unpacked += kUnpackedBlockBytes;
      pass.tile += BlockBytes(TR);
    }
    Store(part, first, rows, acc, out);
  }

  // One tile of TR rows, of which `rows` are there.
  template <BlockLayout L, int TR, bool kUnpacked>
  static void Tile(const MatMulPart& part, const std::byte* tile, bool fresh, int rows,
                   float* out) {
    if constexpr (TR <= kRowTile) {
      Rows<L, TR, TR, kNv, kUnpacked>(part, tile, fresh, 0, rows, out);
    } else if constexpr (kMayUnpack<L> && L.codes == Codes::kBytes) {
      // Unpacking costs more than reading the rows twice.
      for (int v = 0; v < kNv; ++v)
        Rows<L, TR, TR, 1, kUnpacked>(part, tile, fresh && v == 0, v, rows, out);
    } else {
      constexpr int kHalf = TR / 2;
      for (int row = 0; row < rows; row += kHalf) {
        Rows<L, TR, kHalf, kNv, kUnpacked>(part, tile + size_t(row) * 4, fresh && row == 0, 0,
                                           rows - row, out + row * part.out_stride);
      }
    }
  }

  template <BlockLayout L, int TR, bool kUnpacked>
  static void Tiles(const MatMulPart& part) {
    const std::byte* tile = part.tiles;
    float* out = part.out;
    for (int64_t row = 0; row < part.rows; row += TR) {
      const int64_t left = part.rows - row;
      Tile<L, TR, kUnpacked>(part, tile, row == 0, left < TR ? static_cast<int>(left) : TR, out);
      tile += part.tile_bytes;
      out += TR * part.out_stride;
    }
  }

  template <BlockLayout L>
  static void Quant(const MatMulPart& part) {
    if constexpr (kMayUnpack<L>) {
      if (part.tile_rows == kRowTile && part.rows > kFewRows) {
        UnpackPanel<L>(part.panel, part.cols / kBlockValues, part.workspace);
        return Tiles<L, kRowTile, true>(part);
      }
    }
    switch (part.tile_rows) {
      case 1:
        return Tiles<L, 1, false>(part);
      case 2:
        return Tiles<L, 2, false>(part);
      case 3:
        return Tiles<L, 3, false>(part);
      case 4:
        return Tiles<L, 4, false>(part);
      case 5:
        return Tiles<L, 5, false>(part);
      case kRowTile:
        return Tiles<L, kRowTile, false>(part);
      case kFewRowTile:
        return Tiles<L, kFewRowTile, false>(part);
      default:
        __builtin_unreachable();  // TileRows gives no others
    }
  }

  static void Prepare(const float* x, int64_t stride, int rows, int64_t cols, int tile_rows,
                      std::byte* tile) {
    for (int r = 0; r < rows; ++r, x += stride, tile += 4) {
      std::byte* block = tile;
      for (int64_t c = 0; c < cols; c += kBlockValues, block += BlockBytes(tile_rows)) {
        alignas(64) int values[A::kWords + A::kRowValues];
        A::PrepareBlock(x + c, values);
        auto* to = reinterpret_cast<int*>(block);
#pragma GCC unroll 20
        for (int i = 0; i < A::kWords + A::kRowValues; ++i) to[i * tile_rows] = values[i];
      }
    }
  }
};

}  // namespace
}  // namespace loopserve::worker::cpu

#endif  // __AVX512VNNI__
