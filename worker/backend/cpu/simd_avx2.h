// Vectors of AVX2, with VNNI's byte dot product where the including file is compiled for it.
// Only the kernels_avx2*.cc include this: elsewhere it is empty.
#pragma once

#ifdef __AVX2__

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int kWidth = 8;
  static constexpr int kOutputVectors = 2;
  static constexpr int kQuantRows = 3;
  static constexpr int kPrefetchBytes = 4096;
#ifdef __AVXVNNI__
  static constexpr bool kFullUnsigned = true;
#else
  static constexpr bool kFullUnsigned = false;
#endif

  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void StoreN(float* p, F v, int n) {
    float lanes[8];
    Store(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static F Set1(float v) { return _mm256_set1_ps(v); }
  static float First(F v) { return _mm256_cvtss_f32(v); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F Nearest(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F PowerOfTwo(F n) {
    const I biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static float ReduceAdd(F v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float ReduceMax(F v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

  static F LoadF16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F LoadBf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void StoreBf16(uint16_t* p, F v) {
    const I bits = _mm256_castps_si256(v);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const I quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const I high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

  static I Zero() { return _mm256_setzero_si256(); }
  static I SetInt(int32_t v) { return _mm256_set1_epi32(v); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  static I ShiftLeft8(I v) { return _mm256_slli_epi32(v, 8); }
  static int32_t ReduceAddInt(I v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
  static F FromInt(I v) { return _mm256_cvtepi32_ps(v); }
  static I Round(F v) { return _mm256_cvtps_epi32(v); }
  static void StoreInt8(int8_t* p, I v) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static I LoadBytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static I LowNibbles(I v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static I HighNibbles(I v) {
    return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
  }
  static I AddFifthBits(I v, const uint8_t* bits) {
    int32_t word;
    __builtin_memcpy(&word, bits, 4);
    const I spread = _mm256_shuffle_epi8(_mm256_set1_epi32(word),
                                         _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                                           0x0101010101010101, 0x0000000000000000));
    const I bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const I set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    return _mm256_or_si256(v, _mm256_and_si256(set, _mm256_set1_epi8(16)));
  }
  static I Broadcast(const int8_t* four) {
    int32_t q;
    __builtin_memcpy(&q, four, 4);
    return _mm256_set1_epi32(q);
  }
#ifdef __AVXVNNI__
  static I Dot(I sum, I codes, const int8_t* four) {
    return _mm256_dpbusd_avx_epi32(sum, codes, Broadcast(four));
  }
#else
  // Codes up to 127: the pairs' sums stay below 2^15.
  static I Dot(I sum, I codes, const int8_t* four) {
    const I pairs = _mm256_maddubs_epi16(codes, Broadcast(four));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#endif
  // Codes that stand for code - 128: multiplies magnitudes, with the signs moved to q.
  static I DotSigned(I sum, I codes, const int8_t* four) {
    const I w = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(Broadcast(four), w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void Prefetch(const uint8_t* p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
    }
  }
};

}  // namespace
}  // namespace loopserve::worker::cpu

#endif  // __AVX2__
