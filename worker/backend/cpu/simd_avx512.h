// Vectors of AVX-512 with VNNI. Only the kernels_avx512*.cc include this: elsewhere it is empty.
#pragma once

#ifdef __AVX512VNNI__

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int kWidth = 16;
  static constexpr int kOutputVectors = 2;
  static constexpr int kQuantRows = 6;
  static constexpr int kPrefetchBytes = 4096;
  static constexpr bool kFullUnsigned = true;

  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void StoreN(float* p, F v, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
  }
  static F Set1(float v) { return _mm512_set1_ps(v); }
  static float First(F v) { return _mm512_cvtss_f32(v); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Abs(F a) { return _mm512_abs_ps(a); }
  static F Nearest(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
  static F PowerOfTwo(F n) {
    const I biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static float ReduceAdd(F v) { return _mm512_reduce_add_ps(v); }
  static float ReduceMax(F v) { return _mm512_reduce_max_ps(v); }

  static F LoadF16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F LoadBf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void StoreBf16(uint16_t* p, F v) {
    const I bits = _mm512_castps_si512(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    I high = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    high = _mm512_mask_or_epi32(high, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)));
  }

  static I Zero() { return _mm512_setzero_si512(); }
  static I SetInt(int32_t v) { return _mm512_set1_epi32(v); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  static I ShiftLeft8(I v) { return _mm512_slli_epi32(v, 8); }
  static int32_t ReduceAddInt(I v) { return _mm512_reduce_add_epi32(v); }
  static F FromInt(I v) { return _mm512_cvtepi32_ps(v); }
  static I Round(F v) { return _mm512_cvtps_epi32(v); }
  static void StoreInt8(int8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
  static I LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static I LowNibbles(I v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static I HighNibbles(I v) {
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
  }
  static I AddFifthBits(I v, const uint8_t* bits) {
    uint64_t mask;
    __builtin_memcpy(&mask, bits, 8);
    return _mm512_mask_add_epi8(v, mask, v, _mm512_set1_epi8(16));
  }
  static I Dot(I sum, I codes, const int8_t* four) {
    int32_t q;
    __builtin_memcpy(&q, four, 4);
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(q));
  }
  static void Prefetch(const uint8_t* p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(p + i, _MM_HINT_T1);
  }
};

}  // namespace
}  // namespace loopserve::worker::cpu

#endif  // __AVX512VNNI__
