// Blocks of packed codes and of activations as pairs of bf16. Only the kernels that multiply bf16
// include this, each in its own instruction set: elsewhere it is empty.
//
// Pair 2 G + s of a block holds columns 4 G + s and 4 G + s + 2, as they lie in a word of packed
// codes.
#pragma once

#ifdef __AVX512BF16__

#include "worker/backend/cpu/packing.h"
#include "worker/backend/cpu/simd_avx512.h"

namespace loopserve::worker::cpu {
namespace {

using F = __m512;
using I = __m512i;

constexpr int kW = 16;
constexpr int kNv = kPanelOutputs / kW;
constexpr int kPairs = kBlockValues / 2;  // of columns, in a block

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
};

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

}  // namespace
}  // namespace loopserve::worker::cpu

#endif  // __AVX512BF16__
