// Matrix products on AMX: one instruction multiplies 16 rows by 16 outputs over 32 columns.
// docs/decisions/0009-amx.md tells why it is laid out like this.
//
// `Tiles` is the instructions: kernels_amx.cc has them, and the unit test an emulation for machines
// without. Vector code around them is AVX-512. Only these two include this: elsewhere it is empty.
//
// A part goes through its panel in groups of blocks, all its rows at a time. Each group is unpacked
// once, multiplied tile by tile into sums per scale, and the scaled sums are added to accumulators;
// all three stay in the first-level cache. A row's sums depend on its own tile row alone, and are
// scaled and added in ascending blocks, whatever else is in the tile.
#pragma once

#ifdef __AVX512BF16__

#include "worker/backend/cpu/bf16_pairs.h"
#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/tile_config.h"

namespace loopserve::worker::cpu {
namespace {

template <class Tiles>
struct AmxMatMul {
  static constexpr int kActivationBits = 16;
  static constexpr int kTileRows = 16;
  static constexpr int kLineBytes = 64;  // a tile's row: 16 pairs of bf16 or 16 floats
  static constexpr size_t kTileBytes = size_t{kTileRows} * kLineBytes;
  static constexpr int kGroupBlocks = 4;  // unpacked at a time
  static constexpr int kTilesAtOnce = 2;  // tiles of rows that share the loads of a tile of codes
  static constexpr int kMostTiles = 8;    // that share an unpacked group
  static constexpr size_t kPartBytes = size_t{1} << 20;  // half of Sapphire Rapids' L2

  // A prepared tile is a stream of blocks: [kTileRows][kPairs] pairs of bf16, then the sums of the
  // rounded values of each row. Rows that are not there hold anything.
  static constexpr size_t kBlockBytes = kTileBytes + size_t{kTileRows} * 4;

  struct Workspace {
    std::byte codes[kGroupBlocks][kNv][kTileBytes];  // [kPairs][kW] pairs of bf16
    float sums[kGroupBlocks][kTilesAtOnce][kNv][kTileRows][kW];
    float results[kMostTiles][kTileRows][kPanelOutputs];
  };

  // The tile registers: sums of each pair of tiles, then tiles of rows, then of codes.
  static constexpr int kRowsAt = kTilesAtOnce * kNv;
  static constexpr int kCodesAt = kRowsAt + kTilesAtOnce;

  // Runs of columns that share a scale.
  template <BlockLayout L>
  static constexpr int kRuns = L.halves ? 2 : 1;  // in a block
  template <BlockLayout L>
  static constexpr int kRunPairs = kPairs / kRuns<L>;
  template <BlockLayout L>
  static constexpr int kGroup = kGroupBlocks / kRuns<L>;  // blocks, so that sums hold their runs

  static size_t TileBytes(int64_t cols, int) {
    return static_cast<size_t>(cols / kBlockValues) * kBlockBytes;
  }
  static size_t WorkspaceBytes(int64_t) { return sizeof(Workspace); }

  static void Prepare(const float* x, int64_t stride, int rows, int64_t cols, int,
                      std::byte* tile) {
    for (int r = 0; r < rows; ++r, x += stride) {
      std::byte* block = tile;
      for (int64_t c = 0; c < cols; c += kBlockValues, block += kBlockBytes) {
        float sum;
        _mm512_store_si512(block + r * kLineBytes, RoundBlock(x + c, sum));
        __builtin_memcpy(block + kTileBytes + size_t(r) * sizeof sum, &sum, sizeof sum);
      }
    }
  }

  // Only as many rows as each tile has: one row costs less than sixteen.
  template <BlockLayout L>
  static void Configure(int rows) {
    TileConfig config = {};
    config.palette = 1;
    const auto shape = [&config](int tile, int tile_rows, int row_bytes) {
      config.rows[tile] = static_cast<uint8_t>(tile_rows);
      config.row_bytes[tile] = static_cast<uint16_t>(row_bytes);
    };
    for (int i = 0; i < kRowsAt; ++i) shape(i, rows, kLineBytes);
    for (int t = 0; t < kTilesAtOnce; ++t) shape(kRowsAt + t, rows, kRunPairs<L> * 4);
    for (int v = 0; v < kNv; ++v) shape(kCodesAt + v, kRunPairs<L>, kLineBytes);
    Tiles::Configure(config);
  }

  template <BlockLayout L, int kBlocks>
  static void Unpack(const uint8_t* block, Workspace& work) {
    for (int b = 0; b < kBlocks; ++b, block += L.bytes()) {
      Avx512::Prefetch(block + Avx512::kPrefetchBytes, L.bytes());
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
#pragma GCC unroll 2
        for (int v = 0; v < kNv; ++v) {
          I pairs[4];
          Unpacker<L>::Four(block, g, v * kW, pairs);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            _mm512_store_si512(work.codes[b][v] + Unpacker<L>::PairOf(g, i) * kLineBytes, pairs[i]);
          }
        }
      }
    }
  }

  template <int kTile>
  [[gnu::always_inline]] static inline void DotTile() {
    static_assert(kNv == 2);
    Tiles::template Zero<kTile * kNv>();
    Tiles::template Dot<kTile * kNv, kRowsAt + kTile, kCodesAt>();
    Tiles::template Zero<kTile * kNv + 1>();
    Tiles::template Dot<kTile * kNv + 1, kRowsAt + kTile, kCodesAt + 1>();
  }
  template <int kTile>
  [[gnu::always_inline]] static inline void StoreSums(
      float (&sums)[kTilesAtOnce][kNv][kTileRows][kW]) {
    Tiles::template Store<kTile * kNv>(sums[kTile][0], kLineBytes);
    Tiles::template Store<kTile * kNv + 1>(sums[kTile][1], kLineBytes);
  }

  // The sums of every run of a group, for one tile of rows or two, `tile_bytes` apart.
  template <BlockLayout L, int kBlocks, int kTiles>
  static void Multiply(const std::byte* block, size_t tile_bytes, Workspace& work) {
    for (int run = 0; run < kBlocks * kRuns<L>; ++run) {
      const int at = run % kRuns<L> * kRunPairs<L>;  // first pair in the block
      const std::byte* rows = block + size_t(run / kRuns<L>) * kBlockBytes + at * 4;
      const auto& codes = work.codes[run / kRuns<L>];
      Tiles::template Load<kRowsAt>(rows, kLineBytes);
      Tiles::template Load<kCodesAt>(codes[0] + at * kLineBytes, kLineBytes);
      Tiles::template Load<kCodesAt + 1>(codes[1] + at * kLineBytes, kLineBytes);
      DotTile<0>();
      if constexpr (kTiles == 2) {
        Tiles::template Load<kRowsAt + 1>(rows + tile_bytes, kLineBytes);
        DotTile<1>();
      }
      StoreSums<0>(work.sums[run]);
      if constexpr (kTiles == 2) StoreSums<1>(work.sums[run]);
    }
  }

  template <BlockLayout L>
  static F Scale(const uint8_t* at, int v) {
    return MatMulKernels<Avx512, 2>::LoadScale<L>(at, v * kW);
  }

  // Scales, and minima of formats that have them, of a group.
  template <BlockLayout L, int kBlocks>
  struct Factors {
    F scale[kBlocks * kRuns<L>][kNv];
    F min[kBlocks][kNv];

    [[gnu::always_inline]] inline explicit Factors(const uint8_t* block) {
      constexpr size_t kScaleBytes = L.scale_bytes();
      constexpr size_t kMinAt = L.min_at();
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b, block += L.bytes()) {
#pragma GCC unroll 2
        for (int v = 0; v < kNv; ++v) {
          for (int run = 0; run < kRuns<L>; ++run) {
            scale[b * kRuns<L> + run][v] =
                Scale<L>(block + size_t(run) * (kScaleBytes / size_t{kRuns<L>}), v);
          }
          if constexpr (L.has_min) min[b][v] = Scale<L>(block + kMinAt, v);
        }
      }
    }
  };

  // results += scale * sum, and minimum * the row's sum, block by block. `block`: prepared.
  template <BlockLayout L, int kBlocks>
  static void AddScaled(const Factors<L, kBlocks>& factors, const std::byte* block, int tile,
                        int rows, const Workspace& work,
                        float (&results)[kTileRows][kPanelOutputs]) {
    const auto* row_sums = reinterpret_cast<const float*>(block + kTileBytes);
    for (int r = 0; r < rows; ++r) {
      F result[kNv] = {Avx512::Load(results[r]), Avx512::Load(results[r] + kW)};
#pragma GCC unroll 4
      for (int run = 0; run < kBlocks * kRuns<L>; ++run) {
        const int b = run / kRuns<L>;
#pragma GCC unroll 2
        for (int v = 0; v < kNv; ++v) {
          const F sum = Avx512::Load(work.sums[run][tile][v][r]);
          result[v] = Avx512::Fma(sum, factors.scale[run][v], result[v]);
          if constexpr (L.has_min) {
            static_assert(kRuns<L> == 1);
            const F row_sum = Avx512::Set1(row_sums[size_t(b) * (kBlockBytes / 4) + size_t(r)]);
            result[v] = Avx512::Fma(factors.min[b][v], row_sum, result[v]);
          }
        }
      }
      Avx512::Store(results[r], result[0]);
      Avx512::Store(results[r] + kW, result[1]);
    }
  }

  static int RowsOf(const MatMulPart& part, int64_t tile) {
    const int64_t left = part.rows - tile * part.tile_rows;
    return left < part.tile_rows ? static_cast<int>(left) : part.tile_rows;
  }

  // Blocks [first, first + kBlocks) of all rows.
  template <BlockLayout L, int kBlocks>
  static void Group(const MatMulPart& part, int64_t first, Workspace& work) {
    const auto* packed = reinterpret_cast<const uint8_t*>(part.panel) + size_t(first) * L.bytes();
    Unpack<L, kBlocks>(packed, work);
    const Factors<L, kBlocks> factors(packed);
    const std::byte* block = part.tiles + size_t(first) * kBlockBytes;
    const int64_t tiles = (part.rows + part.tile_rows - 1) / part.tile_rows;
    for (int64_t t = 0; t < tiles; t += kTilesAtOnce) {
      const int count = tiles - t < kTilesAtOnce ? 1 : 2;
      if (count == 2) {
        Multiply<L, kBlocks, 2>(block, part.tile_bytes, work);
      } else {
        Multiply<L, kBlocks, 1>(block, part.tile_bytes, work);
      }
      for (int i = 0; i < count; ++i, block += part.tile_bytes) {
        AddScaled<L, kBlocks>(factors, block, i, RowsOf(part, t + i), work, work.results[t + i]);
      }
    }
  }

  static void StoreResults(const MatMulPart& part, const Workspace& work) {
    for (int64_t row = 0; row < part.rows; ++row) {
      const float* results = work.results[row / part.tile_rows][row % part.tile_rows];
      for (int v = 0; v < kNv; ++v) {
        const int n = part.outputs - v * kW;
        float* to = part.out + row * part.out_stride + v * kW;
        if (n >= kW) {
          Avx512::Store(to, Avx512::Load(results + v * kW));
        } else if (n > 0) {
          Avx512::StoreN(to, Avx512::Load(results + v * kW), n);
        }
      }
    }
  }

  // Up to kMostTiles tiles.
  template <BlockLayout L>
  static void SomeRows(const MatMulPart& part, Workspace& work) {
    const int64_t tiles = (part.rows + part.tile_rows - 1) / part.tile_rows;
    __builtin_memset(work.results, 0, size_t(tiles) * sizeof work.results[0]);
    const int64_t blocks = part.cols / kBlockValues;
    int64_t b = 0;
    for (; b + kGroup<L> <= blocks; b += kGroup<L>) Group<L, kGroup<L>>(part, b, work);
    for (; b < blocks; ++b) Group<L, 1>(part, b, work);
    StoreResults(part, work);
  }

  // The configuration belongs to the thread. It is loaded and released per call: a few hundred
  // cycles of several thousand, and an idle thread holds no tiles, which would keep its core from
  // deep sleep and cost every switch of threads 8 KiB.
  template <BlockLayout L>
  static void Quant(const MatMulPart& part) {
    auto& work = *reinterpret_cast<Workspace*>(part.workspace);
    Configure<L>(RowsOf(part, 0));
    MatMulPart some = part;
    const int64_t most = int64_t{kMostTiles} * part.tile_rows;
    for (int64_t row = 0; row < part.rows; row += most) {
      some.rows = part.rows - row < most ? part.rows - row : most;
      SomeRows<L>(some, work);
      some.tiles += kMostTiles * part.tile_bytes;
      some.out += most * part.out_stride;
    }
    Tiles::Release();
  }

  static int TileRows(int64_t rows, int64_t) { return EqualTiles(rows, kTileRows); }

  static constexpr Kernels Table(const char* name) {
    Kernels kernels = WithQuantised<AmxMatMul>(FloatKernels<Avx512>(name));
    kernels.part_bytes = kPartBytes;
    kernels.part_tiles = kMostTiles;
    return kernels;
  }
};

}  // namespace
}  // namespace loopserve::worker::cpu

#endif  // __AVX512BF16__
