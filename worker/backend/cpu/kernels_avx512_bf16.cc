// Matrix products on AVX-512's bfloat16 dot product: activations are rounded to bf16, the codes of
// every quantised format are small integers and so are bf16 without rounding, sums are float32. A
// block's codes are multiplied first and its scale is applied to the sum, so that weights enter
// exactly.
//
// Few rows take the codes as they are unpacked; many rows share one unpacked copy of the panel.
// Both visit a block's pairs of columns in the same order and so give the same bits.
#include "worker/backend/cpu/bf16_pairs.h"
#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/simd_avx512.h"

namespace loopserve::worker::cpu {
namespace {

// A prepared tile is a stream of blocks: [kPairs][kRowTile] pairs of bf16, then the sums of the
// rounded values of each row.
constexpr size_t kPairBytes = size_t{kPairs} * kRowTile * 4;
constexpr size_t kTileBlockBytes = kPairBytes + size_t{kRowTile} * 4;

// An unpacked panel: [blocks][kPairs][kPanelOutputs] pairs of bf16 codes, in the order of a visit.
constexpr size_t kUnpackedBlockBytes = size_t{kPairs} * kPanelOutputs * 4;

size_t TileBytes(int64_t cols) {
  return (static_cast<size_t>(cols / kBlockValues) * kTileBlockBytes + 63) / 64 * 64;
}
size_t WorkspaceBytes(int64_t cols) {
  return static_cast<size_t>(cols / kBlockValues) * kUnpackedBlockBytes;
}

template <BlockLayout L>
void UnpackPanel(const std::byte* panel, int64_t blocks, std::byte* to) {
  const auto* block = reinterpret_cast<const uint8_t*>(panel);
  for (int64_t b = 0; b < blocks; ++b, block += L.bytes(), to += kUnpackedBlockBytes) {
    Avx512::Prefetch(block + Avx512::kPrefetchBytes, L.bytes());
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
#pragma GCC unroll 2
      for (int v = 0; v < kNv; ++v) {
        I pairs[4];
        Unpacker<L>::Four(block, g, v * kW, pairs);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          _mm512_store_si512(to + (size_t(g * 4 + i) * kNv + size_t(v)) * 64, pairs[i]);
        }
      }
    }
  }
}

[[gnu::always_inline]] inline F DotPair(F sum, I codes, I pair) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(codes), reinterpret_cast<__m512bh>(pair));
}

// Products of one block with MR rows, for all outputs of the panel.
template <BlockLayout L, int MR, bool kUnpacked>
struct BlockProduct {
  const uint8_t* block;       // packed
  const std::byte* unpacked;  // if kUnpacked
  const std::byte* tile;      // the block's part of the prepared rows

  // Adds steps [4 kFrom, 4 kTo) of the visit to sum.
  template <int kFrom, int kTo>
  [[gnu::always_inline]] inline void Dot(F (&sum)[MR][kNv]) const {
#pragma GCC unroll 4
    for (int g = kFrom; g < kTo; ++g) {
      I pairs[kNv][4];
      if constexpr (!kUnpacked) {
#pragma GCC unroll 2
        for (int v = 0; v < kNv; ++v) Unpacker<L>::Four(block, g, v * kW, pairs[v]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if constexpr (kUnpacked) {
#pragma GCC unroll 2
          for (int v = 0; v < kNv; ++v) {
            pairs[v][i] = _mm512_load_si512(unpacked + (size_t(g * 4 + i) * kNv + size_t(v)) * 64);
          }
        }
        const auto* x = reinterpret_cast<const int*>(tile) + Unpacker<L>::PairOf(g, i) * kRowTile;
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          const I pair = _mm512_set1_epi32(x[r]);
#pragma GCC unroll 2
          for (int v = 0; v < kNv; ++v) sum[r][v] = DotPair(sum[r][v], pairs[v][i], pair);
        }
      }
    }
  }

  [[gnu::always_inline]] static inline void Clear(F (&sum)[MR][kNv]) {
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kNv; ++v) sum[r][v] = _mm512_setzero_ps();
    }
  }

  static F Scale(const uint8_t* at, int v) {
    if constexpr (L.wide) return Avx512::Load(reinterpret_cast<const float*>(at) + v * kW);
    return Avx512::LoadF16(reinterpret_cast<const uint16_t*>(at) + v * kW);
  }

  [[gnu::always_inline]] static inline void AddScaled(const uint8_t* scales,
                                                      const F (&sum)[MR][kNv], F (&acc)[MR][kNv]) {
#pragma GCC unroll 2
    for (int v = 0; v < kNv; ++v) {
      const F scale = Scale(scales, v);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) acc[r][v] = Avx512::Fma(sum[r][v], scale, acc[r][v]);
    }
  }

  [[gnu::always_inline]] inline void AddMins(F (&acc)[MR][kNv]) const {
    constexpr size_t kMinAt = L.min_at();
    const auto* sums = reinterpret_cast<const float*>(tile + kPairBytes);
#pragma GCC unroll 2
    for (int v = 0; v < kNv; ++v) {
      const F min = Scale(block + kMinAt, v);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        acc[r][v] = Avx512::Fma(min, _mm512_set1_ps(sums[r]), acc[r][v]);
      }
    }
  }

  [[gnu::always_inline]] inline void AddTo(F (&acc)[MR][kNv]) const {
    F sum[MR][kNv];
    Clear(sum);
    if constexpr (L.halves) {
      // Bytes lie in ascending columns: the first half of a visit is the first half of the block.
      static_assert(L.codes == Codes::kBytes);
      Dot<0, 2>(sum);
      AddScaled(block, sum, acc);
      Clear(sum);
      Dot<2, 4>(sum);
      AddScaled(block + size_t{kPanelOutputs} * 4, sum, acc);
    } else {
      Dot<0, 4>(sum);
      AddScaled(block, sum, acc);
    }
    if constexpr (L.has_min) AddMins(acc);
  }
};

template <BlockLayout L, int MR, bool kUnpacked>
[[gnu::noinline]] void TileRows(const MatMulPart& part, const std::byte* tile, float* out) {
  F acc[MR][kNv];
  using Product = BlockProduct<L, MR, kUnpacked>;
  Product::Clear(acc);
  Product product{reinterpret_cast<const uint8_t*>(part.panel), part.workspace, tile};
  for (int64_t b = 0; b < part.cols / kBlockValues; ++b) {
    if constexpr (!kUnpacked) {
      Avx512::Prefetch(product.block + Avx512::kPrefetchBytes, L.bytes());
    }
    product.AddTo(acc);
    product.block += L.bytes();
    product.unpacked += kUnpackedBlockBytes;
    product.tile += kTileBlockBytes;
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kNv; ++v) {
      const int n = part.outputs - v * kW;
      float* to = out + r * part.out_stride + v * kW;
      if (n >= kW) {
        Avx512::Store(to, acc[r][v]);
      } else if (n > 0) {
        Avx512::StoreN(to, acc[r][v], n);
      }
    }
  }
}

template <BlockLayout L, bool kUnpacked>
void Tiles(const MatMulPart& part) {
  using Rows = void (*)(const MatMulPart&, const std::byte*, float*);
  static constexpr Rows kRows[kRowTile] = {TileRows<L, 1, kUnpacked>, TileRows<L, 2, kUnpacked>,
                                           TileRows<L, 3, kUnpacked>, TileRows<L, 4, kUnpacked>,
                                           TileRows<L, 5, kUnpacked>, TileRows<L, 6, kUnpacked>};
  const std::byte* tile = part.tiles;
  float* out = part.out;
  for (int64_t row = 0; row < part.rows; row += part.tile_rows) {
    const int64_t left = part.rows - row;
    kRows[(left < part.tile_rows ? left : part.tile_rows) - 1](part, tile, out);
    tile += part.tile_bytes;
    out += part.tile_rows * part.out_stride;
  }
}

template <BlockLayout L>
void MatMul(const MatMulPart& part) {
  if (part.rows <= kRowTile) return Tiles<L, false>(part);
  UnpackPanel<L>(part.panel, part.cols / kBlockValues, part.workspace);
  Tiles<L, true>(part);
}

void PrepareRow(const float* x, int64_t cols, std::byte* tile) {
  for (int64_t b = 0; b < cols / kBlockValues; ++b, x += kBlockValues, tile += kTileBlockBytes) {
    float sum;
    alignas(64) int pairs[kPairs];
    _mm512_store_si512(pairs, RoundBlock(x, sum));
    auto* to = reinterpret_cast<int*>(tile);
#pragma GCC unroll 16
    for (int p = 0; p < kPairs; ++p) to[p * kRowTile] = pairs[p];
    __builtin_memcpy(tile + kPairBytes, &sum, sizeof sum);
  }
}

void Prepare(const float* x, int64_t stride, int rows, int64_t cols, std::byte* tile) {
  for (int r = 0; r < rows; ++r) PrepareRow(x + r * stride, cols, tile + size_t(r) * 4);
}

constexpr Kernels MakeBf16Kernels() {
  Kernels kernels = MakeKernels<Avx512>("avx512-bf16");
  constexpr Kernels::MatMul kQuantised[] = {
      MatMul<kLayoutQ4_0>, MatMul<kLayoutQ4_1>, MatMul<kLayoutQ5_0>, MatMul<kLayoutQ5_1>,
      MatMul<kLayoutQ8_0>, MatMul<kLayoutQ4_K>, MatMul<kLayoutQ6_K>};
  constexpr int kFloats = 3;  // float formats come first in WeightType
  for (int i = kFloats; i < kWeightTypes; ++i) kernels.matmul[i] = kQuantised[i - kFloats];
  kernels.prepare = Prepare;
  kernels.tile_bytes = TileBytes;
  kernels.workspace_bytes = WorkspaceBytes;
  return kernels;
}

constexpr Kernels kKernels = MakeBf16Kernels();

}  // namespace

const Kernels& Avx512Bf16Kernels() { return kKernels; }

}  // namespace loopserve::worker::cpu
