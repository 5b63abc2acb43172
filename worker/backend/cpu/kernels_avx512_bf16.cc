// Matrix products on AVX-512's bfloat16 dot product: activations are rounded to bf16, the codes of
// every quantised format are small integers and so are bf16 without rounding, sums are float32. A
// block's codes are multiplied first and its scale is applied to the sum, so that weights enter
// exactly.
//
// Few rows take the codes as they are unpacked; many rows share one unpacked copy of the panel.
// Both visit a block's pairs of columns in the same order and so give the same bits.
#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/simd_avx512.h"

namespace loopserve::worker::cpu {
namespace {

using F = __m512;
using I = __m512i;

constexpr int kW = 16;
constexpr int kNv = kPanelOutputs / kW;
constexpr int kPairs = kBlockValues / 2;  // of columns, in a block

// A prepared tile is a stream of blocks: [kPairs][kRowTile] pairs of bf16, then the sums of the
// rounded values of each row. Pair 2 G + s holds columns 4 G + s and 4 G + s + 2, as they lie in a
// word of packed codes.
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

constexpr uint16_t Bf16OfInt(int value) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(value)) >> 16);
}

// The bf16 values of codes, by their lowest five bits (six bits with both halves).
struct alignas(64) CodeTable {
  uint16_t value[64];
};
constexpr CodeTable MakeTable(int codes, int offset) {
  CodeTable table{};
  for (int i = 0; i < 64; ++i) table.value[i] = Bf16OfInt(i % codes - offset);
  return table;
}

template <BlockLayout L>
constexpr int kCodes = L.codes == Codes::kNibbles    ? 16
                       : L.codes == Codes::kFiveBits ? 32
                                                     : 64;

// Unpacks the codes of kNv vectors of outputs, four pairs at a time.
template <BlockLayout L>
struct Unpacker {
  static constexpr CodeTable kTable = MakeTable(kCodes<L>, L.offset);
  static constexpr bool kWideCodes = L.codes == Codes::kBytes && L.offset == 128;

  // The pair that step e = 4 g + i of a visit multiplies.
  static constexpr int PairOf(int g, int i) {
    if constexpr (L.codes == Codes::kBytes) return 4 * g + i;
    return 2 * (g + (i % 2) * 4) + i / 2;
  }

  [[gnu::always_inline]] static inline I Look(I words) {
    const I low = _mm512_load_si512(kTable.value);
    if constexpr (kCodes<L> <= 32) return _mm512_permutexvar_epi16(words, low);
    return _mm512_permutex2var_epi16(low, words, _mm512_load_si512(kTable.value + 32));
  }

  // Signed bytes [Shift, Shift + 8) and [Shift + 16, Shift + 24) of each word as a pair of bf16.
  template <int kShift>
  [[gnu::always_inline]] static inline I Widen(I bytes) {
    const I even = kShift == 0 ? _mm512_slli_epi32(bytes, 24) : _mm512_slli_epi32(bytes, 16);
    const I odd = kShift == 0 ? _mm512_slli_epi32(bytes, 8) : bytes;
    const I low = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(even, 24)));
    const I high = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(odd, 24)));
    return _mm512_or_si512(_mm512_srli_epi32(low, 16), high);
  }

  [[gnu::always_inline]] static inline void Bytes(const uint8_t* codes, I& first, I& second) {
    const I bytes = _mm512_loadu_si512(codes);
    if constexpr (kWideCodes) {
      const I q = _mm512_xor_si512(bytes, _mm512_set1_epi32(static_cast<int>(0x80808080u)));
      first = Widen<0>(q);
      second = Widen<8>(q);
    } else {
      first = Look(bytes);
      second = Look(_mm512_srli_epi16(bytes, 8));
    }
  }

  // out[i]: the codes of pair PairOf(g, i), of outputs [lane, lane + 16).
  [[gnu::always_inline]] static inline void Four(const uint8_t* block, int g, int lane,
                                                 I (&out)[4]) {
    constexpr size_t kGroup = size_t{kPanelOutputs} * 4;
    constexpr size_t kCodesAt = L.codes_at();
    const uint8_t* codes = block + kCodesAt + size_t(lane) * 4;
    if constexpr (L.codes == Codes::kBytes) {
      Bytes(codes + size_t(g) * 2 * kGroup, out[0], out[1]);
      Bytes(codes + (size_t(g) * 2 + 1) * kGroup, out[2], out[3]);
    } else {
      const I both = _mm512_loadu_si512(codes + size_t(g) * kGroup);
      if constexpr (L.codes == Codes::kNibbles) {
        out[0] = Look(both);
        out[1] = Look(_mm512_srli_epi16(both, 4));
        out[2] = Look(_mm512_srli_epi16(both, 8));
        out[3] = Look(_mm512_srli_epi16(both, 12));
      } else {
        constexpr size_t kBitsAt = L.bits_at();
        const uint8_t* bits = block + kBitsAt + size_t(lane) / 2;
        const I low = Avx512::AddFifthBits(Avx512::LowNibbles(both), bits + size_t(g) * 16);
        const I high = Avx512::AddFifthBits(Avx512::HighNibbles(both), bits + size_t(g + 4) * 16);
        out[0] = Look(low);
        out[1] = Look(high);
        out[2] = Look(_mm512_srli_epi16(low, 8));
        out[3] = Look(_mm512_srli_epi16(high, 8));
      }
    }
  }

  static void Panel(const std::byte* panel, int64_t blocks, std::byte* to) {
    const auto* block = reinterpret_cast<const uint8_t*>(panel);
    for (int64_t b = 0; b < blocks; ++b, block += L.bytes(), to += kUnpackedBlockBytes) {
      Avx512::Prefetch(block + Avx512::kPrefetchBytes, L.bytes());
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
#pragma GCC unroll 2
        for (int v = 0; v < kNv; ++v) {
          I pairs[4];
          Four(block, g, v * kW, pairs);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            _mm512_store_si512(to + (size_t(g * 4 + i) * kNv + size_t(v)) * 64, pairs[i]);
          }
        }
      }
    }
  }
};

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
  Unpacker<L>::Panel(part.panel, part.cols / kBlockValues, part.workspace);
  Tiles<L, true>(part);
}

// Order of a block's values in pairs: word 2 p is the first column of pair p.
alignas(64) constexpr uint16_t kPairOrder[32] = {0,  2,  1,  3,  4,  6,  5,  7,  8,  10, 9,
                                                 11, 12, 14, 13, 15, 16, 18, 17, 19, 20, 22,
                                                 21, 23, 24, 26, 25, 27, 28, 30, 29, 31};

// One block of a row, as pairs; and the sum of its rounded values.
[[gnu::always_inline]] inline I RoundBlock(const float* x, float& sum) {
  const I rounded =
      reinterpret_cast<I>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + kW), _mm512_loadu_ps(x)));
  const F even = _mm512_castsi512_ps(_mm512_slli_epi32(rounded, 16));
  const F odd = _mm512_castsi512_ps(
      _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  sum = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kPairOrder), rounded);
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
