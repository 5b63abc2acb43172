// Vectors of AVX-512 for attention. Only the kernels_avx512*.cc include this: elsewhere it is
// empty.
#pragma once

#ifdef __AVX512BW__

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/backend/cpu/attention/chunk_kernels_impl.h"

namespace loopserve::worker::cpu_attention {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int kWidth = 16;
  using Words = __m512i;
  static constexpr int kTileVectors = 4;
  static constexpr bool kStreams = true;

  LOOPSERVE_INLINE F Load(const float* at) { return _mm512_loadu_ps(at); }
  LOOPSERVE_INLINE void Store(float* at, F x) { _mm512_storeu_ps(at, x); }
  LOOPSERVE_INLINE F Set1(float x) { return _mm512_set1_ps(x); }
  LOOPSERVE_INLINE float First(F x) { return _mm512_cvtss_f32(x); }
  LOOPSERVE_INLINE F Add(F a, F b) { return _mm512_add_ps(a, b); }
  LOOPSERVE_INLINE F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  LOOPSERVE_INLINE F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  LOOPSERVE_INLINE F Max(F a, F b) { return _mm512_max_ps(a, b); }
  LOOPSERVE_INLINE F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  LOOPSERVE_INLINE float ReduceMax(F x) { return _mm512_reduce_max_ps(x); }
  LOOPSERVE_INLINE float ReduceAdd(F x) { return _mm512_reduce_add_ps(x); }

  LOOPSERVE_INLINE F Select(F x, uint64_t bits) {
    return _mm512_mask_mov_ps(Set1(-__builtin_inff()), static_cast<__mmask16>(bits), x);
  }

  LOOPSERVE_INLINE F Exp2(F x) {
    const F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F r = Sub(x, n);
    F p = Set1(1.326472731307149e-3f);
    p = Fma(p, r, Set1(9.671512991189957e-3f));
    p = Fma(p, r, Set1(5.550733581185341e-2f));
    p = Fma(p, r, Set1(0.24022242426872253f));
    p = Fma(p, r, Set1(0.6931470036506653f));
    p = Fma(p, r, Set1(1.0f));
    const __mmask16 keep = _mm512_cmp_ps_mask(x, Set1(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(keep, p, n);
  }

  // 2^x within 1e-4 of the value, for weights that are then rounded; 0 below -126.
  LOOPSERVE_INLINE F RoughExp2(F x) {
    const F magic = Set1(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the nearest integer
    const F shifted = Add(x, magic);
    const F r = Sub(x, Sub(shifted, magic));
    F p = Set1(0.055838282946220126f);
    p = Fma(p, r, Set1(0.24263947854625845f));
    p = Fma(p, r, Set1(0.6931367338836214f));
    p = Fma(p, r, Set1(0.9999245569508709f));
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    const __mmask16 keep = _mm512_cmp_ps_mask(x, Set1(-126.0f), _CMP_NLT_UQ);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(keep, _mm512_castps_si512(p), power));
  }

  LOOPSERVE_INLINE F WidenBf16(const uint16_t* at) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))), 16));
  }

  // The number of the code in the top byte of each word.
  LOOPSERVE_INLINE F Int8OfTop(__m512i x) { return _mm512_cvtepi32_ps(_mm512_srai_epi32(x, 24)); }
  LOOPSERVE_INLINE F E4m3OfTop(__m512i x) {  // as E4m3Value
    const __m512i magnitude =
        _mm512_and_si512(_mm512_srli_epi32(x, 4), _mm512_set1_epi32(0x7f << 20));
    const __mmask16 low = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(1 << 23));
    __m512i bits = _mm512_add_epi32(magnitude, _mm512_set1_epi32(120 << 23));
    bits = _mm512_mask_add_epi32(bits, low, bits, _mm512_set1_epi32(1 << 23));
    const F value = _mm512_castsi512_ps(bits);
    const F number = _mm512_mask_sub_ps(value, low, value, Set1(0x1p-6f));
    const __m512i sign = _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0x80000000)));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(number), sign));
  }

  LOOPSERVE_INLINE F WidenInt8(const std::byte* at) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }
  LOOPSERVE_INLINE F WidenE4m3(const std::byte* at) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return E4m3OfTop(_mm512_slli_epi32(_mm512_cvtepu8_epi32(codes), 24));
  }

  // 16 x 16 words: element j of result i is element i of row j.
  LOOPSERVE_INLINE void Transpose(__m512i (&x)[16]) {
    __m512i y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
      y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
      x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
      x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
      x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
      y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
      y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
      y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
      x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
  }

  LOOPSERVE_INLINE F EvenBf16(Words x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
  LOOPSERVE_INLINE F OddBf16(Words x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }

  LOOPSERVE_INLINE void TransposeWords(const std::byte* const* at, int i, Words (&x)[16]) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = _mm512_loadu_si512(at[j] + size_t(i) * 2);
    Transpose(x);
  }

  // Values [i, i + 32) of 16 keys, two to a word.
  LOOPSERVE_INLINE void TransposeBf16(const std::byte* const* at, int i, int count, float* keys) {
    const __mmask32 mask = count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
    __m512i x[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = _mm512_maskz_loadu_epi16(mask, at[j] + size_t(i) * 2);
    Transpose(x);
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
      if (2 * p < count) {
        Store(keys + (i + 2 * p) * kKeyChunk, EvenBf16(x[p]));
      }
      if (2 * p + 1 < count) {
        Store(keys + (i + 2 * p + 1) * kKeyChunk, OddBf16(x[p]));
      }
    }
  }

  LOOPSERVE_INLINE void TransposeF32(const std::byte* const* at, int i, int count, float* keys) {
    const __mmask16 mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
    __m512i x[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = _mm512_maskz_loadu_epi32(mask, at[j] + size_t(i) * 4);
    Transpose(x);
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
      if (p < count) Store(keys + (i + p) * kKeyChunk, _mm512_castsi512_ps(x[p]));
    }
  }

  // Codes [i, i + 64) of 16 keys, four to a word.
  template <KvDtype kDtype>
  LOOPSERVE_INLINE void TransposeCodes(const ChunkSource& from, int j, int i, float* keys) {
    const int count = from.head_dim - i < 64 ? from.head_dim - i : 64;
    const __mmask64 mask = count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
    const F scales = Load(from.scales + j);
    __m512i x[16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) x[k] = _mm512_maskz_loadu_epi8(mask, from.at[j + k] + i);
    Transpose(x);
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
      float* to = keys + (i + 4 * p) * kKeyChunk + j;
      const __m512i codes[4] = {_mm512_slli_epi32(x[p], 24), _mm512_slli_epi32(x[p], 16),
                                _mm512_slli_epi32(x[p], 8), x[p]};
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n, to += kKeyChunk) {
        if (4 * p + n >= count) continue;
        const F number = kDtype == KvDtype::kInt8 ? Int8OfTop(codes[n]) : E4m3OfTop(codes[n]);
        Store(to, Mul(number, scales));
      }
    }
  }

  static int TransposeKeys(const ChunkSource& from, float* keys) {
    for (int j = 0; j < kKeyChunk; j += kWidth) {
      if (from.dtype == KvDtype::kInt8) {
        for (int i = 0; i < from.head_dim; i += 64) {
          TransposeCodes<KvDtype::kInt8>(from, j, i, keys);
        }
      } else if (from.dtype == KvDtype::kFp8) {
        for (int i = 0; i < from.head_dim; i += 64) {
          TransposeCodes<KvDtype::kFp8>(from, j, i, keys);
        }
      } else if (from.dtype == KvDtype::kBf16) {
        int i = 0;
        for (; i + 32 <= from.head_dim; i += 32) TransposeBf16(from.at + j, i, 32, keys + j);
        if (i < from.head_dim) TransposeBf16(from.at + j, i, from.head_dim - i, keys + j);
      } else {
        int i = 0;
        for (; i + 16 <= from.head_dim; i += 16) TransposeF32(from.at + j, i, 16, keys + j);
        if (i < from.head_dim) TransposeF32(from.at + j, i, from.head_dim - i, keys + j);
      }
    }
    return from.head_dim;
  }
};

}  // namespace
}  // namespace loopserve::worker::cpu_attention

#endif  // __AVX512BW__
