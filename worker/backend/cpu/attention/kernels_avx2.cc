#include <immintrin.h>

#include "worker/backend/cpu/attention/chunk_kernels_impl.h"

namespace loopserve::worker::cpu_attention {
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int kWidth = 8;
  using Words = __m256i;
  static constexpr int kTileVectors = 2;
  static constexpr bool kStreams = true;

  LOOPSERVE_INLINE F Load(const float* at) { return _mm256_loadu_ps(at); }
  LOOPSERVE_INLINE void Store(float* at, F x) { _mm256_storeu_ps(at, x); }
  LOOPSERVE_INLINE F Set1(float x) { return _mm256_set1_ps(x); }
  LOOPSERVE_INLINE float First(F x) { return _mm256_cvtss_f32(x); }
  LOOPSERVE_INLINE F Add(F a, F b) { return _mm256_add_ps(a, b); }
  LOOPSERVE_INLINE F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  LOOPSERVE_INLINE F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  LOOPSERVE_INLINE F Max(F a, F b) { return _mm256_max_ps(a, b); }
  LOOPSERVE_INLINE F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  LOOPSERVE_INLINE float ReduceMax(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  LOOPSERVE_INLINE float ReduceAdd(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
  }

  LOOPSERVE_INLINE F Select(F x, uint64_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i word = _mm256_set1_epi32(static_cast<int>(bits & 0xff));
    const __m256i keep = _mm256_cmpeq_epi32(_mm256_and_si256(word, lane), lane);
    return _mm256_blendv_ps(Set1(-__builtin_inff()), x, _mm256_castsi256_ps(keep));
  }

  LOOPSERVE_INLINE F Exp2(F x) {
    const F kept = _mm256_cmp_ps(x, Set1(-126.0f), _CMP_NLT_UQ);
    x = _mm256_max_ps(Set1(-126.0f), x);
    const F n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F r = Sub(x, n);
    F p = Set1(1.326472731307149e-3f);
    p = Fma(p, r, Set1(9.671512991189957e-3f));
    p = Fma(p, r, Set1(5.550733581185341e-2f));
    p = Fma(p, r, Set1(0.24022242426872253f));
    p = Fma(p, r, Set1(0.6931470036506653f));
    p = Fma(p, r, Set1(1.0f));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    const F power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    return _mm256_and_ps(kept, Mul(p, power));
  }

  LOOPSERVE_INLINE F WidenBf16(const uint16_t* at) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }

  // The number of the code in the top byte of each word.
  LOOPSERVE_INLINE F Int8OfTop(__m256i x) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(x, 24)); }
  LOOPSERVE_INLINE F E4m3OfTop(__m256i x) {  // as E4m3Value
    const __m256i magnitude =
        _mm256_and_si256(_mm256_srli_epi32(x, 4), _mm256_set1_epi32(0x7f << 20));
    const __m256i one = _mm256_set1_epi32(1 << 23);
    const __m256i low = _mm256_cmpgt_epi32(one, magnitude);
    const __m256i bits = _mm256_add_epi32(_mm256_add_epi32(magnitude, _mm256_set1_epi32(120 << 23)),
                                          _mm256_and_si256(low, one));
    const F leading = _mm256_and_ps(_mm256_castsi256_ps(low), Set1(0x1p-6f));
    return _mm256_or_ps(Sub(_mm256_castsi256_ps(bits), leading),
                        _mm256_and_ps(_mm256_castsi256_ps(x), Set1(-0.0f)));
  }

  LOOPSERVE_INLINE F WidenInt8(const std::byte* at) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  }
  LOOPSERVE_INLINE F WidenE4m3(const std::byte* at) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    return E4m3OfTop(_mm256_slli_epi32(_mm256_cvtepu8_epi32(codes), 24));
  }

  // 8 x 8 words: element j of result i is element i of row j.
  LOOPSERVE_INLINE void Transpose(__m256i (&x)[8]) {
    __m256i y[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      y[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
      y[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      x[4 * i] = _mm256_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
      x[4 * i + 1] = _mm256_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
      x[4 * i + 2] = _mm256_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
      x[4 * i + 3] = _mm256_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
      y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) x[i] = y[i];
  }

  LOOPSERVE_INLINE F EvenBf16(Words x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
  LOOPSERVE_INLINE F OddBf16(Words x) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }

  LOOPSERVE_INLINE void TransposeWords(const std::byte* const* at, int i, Words (&x)[8]) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      x[j] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at[j] + size_t(i) * 2));
    }
    Transpose(x);
  }

  // Four dimensions of 8 keys, as a word of each holds them.
  template <KvDtype kDtype>
  LOOPSERVE_INLINE void StoreCodes(Words x, F scales, float* to) {
    const __m256i codes[4] = {_mm256_slli_epi32(x, 24), _mm256_slli_epi32(x, 16),
                              _mm256_slli_epi32(x, 8), x};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const F number = kDtype == KvDtype::kInt8 ? Int8OfTop(codes[i]) : E4m3OfTop(codes[i]);
      Store(to + i * kKeyChunk, Mul(number, scales));
    }
  }

  template <KvDtype kDtype>
  static int Transpose(const ChunkSource& from, float* keys) {
    constexpr int kInWord = kDtype == KvDtype::kF32 ? 1 : kDtype == KvDtype::kBf16 ? 2 : 4;
    const int vectors = from.head_dim / (8 * kInWord);
    for (int j = 0; j < kKeyChunk; j += kWidth) {
      for (int v = 0; v < vectors; ++v) {
        __m256i x[8];
        TransposeWords(from.at + j, v * 16, x);
        float* to = keys + size_t(v) * 8 * kInWord * kKeyChunk + j;
#pragma GCC unroll 8
        for (int p = 0; p < 8; ++p, to += kInWord * kKeyChunk) {
          if constexpr (kInWord == 4) {
            StoreCodes<kDtype>(x[p], Load(from.scales + j), to);
          } else if constexpr (kDtype == KvDtype::kBf16) {
            Store(to, EvenBf16(x[p]));
            Store(to + kKeyChunk, OddBf16(x[p]));
          } else {
            Store(to, _mm256_castsi256_ps(x[p]));
          }
        }
      }
    }
    return vectors * 8 * kInWord;
  }

  static int TransposeKeys(const ChunkSource& from, float* keys) {
    if (from.dtype == KvDtype::kInt8) return Transpose<KvDtype::kInt8>(from, keys);
    if (from.dtype == KvDtype::kFp8) return Transpose<KvDtype::kFp8>(from, keys);
    return from.dtype == KvDtype::kBf16 ? Transpose<KvDtype::kBf16>(from, keys)
                                        : Transpose<KvDtype::kF32>(from, keys);
  }
};

}  // namespace

const ChunkKernels& Avx2ChunkKernels() { return ChunkKernelsFor<Avx2>::kTable; }

}  // namespace loopserve::worker::cpu_attention
