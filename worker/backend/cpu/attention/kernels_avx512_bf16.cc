// Attention on AVX-512's bfloat16 dot product: keys and values are taken as the arena holds them,
// queries and softmax weights are rounded to bf16, sums are float32.
//
// Queries [rows, padded_dim] bf16. Keys [padded_dim / 2, kKeyChunk] pairs of dimensions. Values
// [kKeyChunk / 2, padded_dim] pairs of keys; within 32 dimensions first those of the low halves of
// each 128 bits, then those of the high halves, as unpacking leaves them, and sums in that order
// too, until `finish`.
#include "worker/backend/cpu/attention/dot_rows_avx512.h"

namespace loopserve::worker::cpu_attention {
namespace {

constexpr int kChunkVectors = kKeyChunk / kW;
constexpr int kGroup = 32;  // dimensions that are unpacked together

LOOPSERVE_INLINE F Dot(F sum, I a, I b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
LOOPSERVE_INLINE __mmask32 FirstWords(int count) {
  return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
}
// Values [i, i + 32) of a stored vector of `dim`; zeros beyond it.
LOOPSERVE_INLINE I LoadGroup(const std::byte* at, int i, int dim) {
  return _mm512_maskz_loadu_epi16(FirstWords(dim - i), at + size_t(i) * 2);
}
LOOPSERVE_INLINE const int* Pairs(const float* laid_out) {
  return reinterpret_cast<const int*>(laid_out);
}

void LoadQuery(const float* from, int head_dim, int padded_dim, float, float* q) {
  auto* to = reinterpret_cast<uint16_t*>(q);
  for (int i = 0; i < padded_dim; i += kW) {
    const F x = _mm512_maskz_loadu_ps(FirstLanes(head_dim - i), from + i);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
}
// Pairs of row r's query; rows lie padded_dim floats apart.
LOOPSERVE_INLINE const int* QueryPairs(const ChunkStep& a, int r) {
  return Pairs(a.q + size_t(r) * size_t(a.padded_dim));
}

void LoadKeys(const ChunkSource& from, float* keys) {
  for (int j = 0; j < kKeyChunk; ++j) Float::Prefetch(from, j);
  auto* to = reinterpret_cast<int*>(keys);
  for (int j = 0; j < kKeyChunk; j += kW) {
    for (int i = 0; i < from.head_dim; i += kGroup) {
      I x[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) x[k] = LoadGroup(from.at[j + k], i, from.head_dim);
      S::Transpose(x);
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p) {
        _mm512_storeu_si512(to + size_t(i / 2 + p) * kKeyChunk + j, x[p]);
      }
    }
  }
}

void LoadValues(const ChunkSource& from, int padded_dim, float* values) {
  auto* to = reinterpret_cast<int*>(values);
  for (int j = 0; j < kKeyChunk; j += 2, to += padded_dim) {
    Float::Prefetch(from, j);
    Float::Prefetch(from, j + 1);
    for (int i = 0; i < padded_dim; i += kGroup) {
      const I a = LoadGroup(from.at[j], i, from.head_dim);
      const I b = LoadGroup(from.at[j + 1], i, from.head_dim);
      _mm512_storeu_si512(to + i, _mm512_unpacklo_epi16(a, b));
      _mm512_storeu_si512(to + i + kW, _mm512_unpackhi_epi16(a, b));
    }
  }
}

template <int MR>
LOOPSERVE_INLINE void Scores(const ChunkStep& a, int row0, float (*scores)[kKeyChunk]) {
  F acc[MR][kChunkVectors];
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kChunkVectors; ++v) acc[r][v] = S::Set1(0.0f);
  }
  const int* keys = Pairs(a.keys);
  const int* q = QueryPairs(a, row0);
  const size_t stride = size_t(a.padded_dim);
  for (int p = 0; p < a.padded_dim / 2; ++p, ++q, keys += kKeyChunk) {
    I k[kChunkVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kChunkVectors; ++v) k[v] = _mm512_loadu_si512(keys + v * kW);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const I pair = _mm512_set1_epi32(q[size_t(r) * stride]);
#pragma GCC unroll 4
      for (int v = 0; v < kChunkVectors; ++v) acc[r][v] = Dot(acc[r][v], k[v], pair);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kChunkVectors; ++v) S::Store(scores[r] + v * kW, acc[r][v]);
  }
}

// Scores become weights 2^(factor * score - highest), in bf16; fills in the factors that older sums
// shrink by. The sums of weights are those of the rounded ones.
template <int MR>
LOOPSERVE_INLINE void Softmax(float (*scores)[kKeyChunk], float factor, const uint64_t* visible,
                              float* lanes, size_t stride, uint16_t (*weights)[kKeyChunk],
                              float (&shrink)[MR]) {
  float factor_of[MR];
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) factor_of[r] = factor;
  float shift[MR];
  Raise<MR>(scores, factor_of, visible, lanes, stride, shift, shrink);
  const F factors = S::Set1(factor);
  const I ones = _mm512_set1_epi32(0x3f803f80);
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const F shifts = S::Set1(-shift[r]);
    F sum = S::Mul(S::Load(lanes + size_t(r) * stride), S::Set1(shrink[r]));
#pragma GCC unroll 2
    for (int i = 0; i < kKeyChunk; i += 2 * kW) {
      const F low = S::RoughExp2(S::Fma(S::Load(scores[r] + i), factors, shifts));
      const F high = S::RoughExp2(S::Fma(S::Load(scores[r] + i + kW), factors, shifts));
      const I both = reinterpret_cast<I>(_mm512_cvtne2ps_pbh(high, low));
      _mm512_store_si512(weights[r] + i, both);
      sum = Dot(sum, both, ones);
    }
    S::Store(lanes + size_t(r) * stride, sum);
  }
}

// sums *= shrink, for NV vectors of MR rows.
template <int MR, int NV>
LOOPSERVE_INLINE void LoadSums(const float* sums, size_t stride, const float* shrink,
                               F (&acc)[MR][NV]) {
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const F factor = S::Set1(shrink[r]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = S::Mul(S::Load(sums + size_t(r) * stride + v * kW), factor);
    }
  }
}
template <int MR, int NV>
LOOPSERVE_INLINE void StoreSums(const F (&acc)[MR][NV], size_t stride, float* sums) {
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) S::Store(sums + size_t(r) * stride + v * kW, acc[r][v]);
  }
}
template <int MR, int NV>
LOOPSERVE_INLINE void AddPair(const I (&value)[NV], const uint16_t (*weights)[kKeyChunk], int j,
                              F (&acc)[MR][NV]) {
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    int pair;
    __builtin_memcpy(&pair, &weights[r][j], 4);
    const I weight = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = Dot(acc[r][v], value[v], weight);
  }
}

template <int MR, int NV>
LOOPSERVE_INLINE void WeightedSum(const ChunkStep& a, float* state, int dim, uint64_t seen,
                                  const uint16_t (*weights)[kKeyChunk], const float* shrink) {
  const size_t stride = size_t(StateStride(a.padded_dim));
  F acc[MR][NV];
  LoadSums<MR, NV>(state + dim, stride, shrink, acc);
  const int* values = Pairs(a.values) + dim;
  const int count = KeysOf(seen);
  for (int j = 0; j < count; j += 2, values += a.padded_dim) {
    I value[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) value[v] = _mm512_loadu_si512(values + v * kW);
    AddPair<MR, NV>(value, weights, j, acc);
  }
  StoreSums<MR, NV>(acc, stride, state + dim);
}

template <int MR>
[[gnu::noinline]] void AttendRows(const ChunkStep& a, int row0) {
  const uint64_t seen = SeenBy<MR>(a.visible + row0);
  if (seen == 0) return;
  alignas(64) float scores[MR][kKeyChunk];
  alignas(64) uint16_t weights[MR][kKeyChunk];
  float shrink[MR];
  const size_t stride = size_t(StateStride(a.padded_dim));
  float* state = a.state + size_t(row0) * stride;
  PrefetchNextRows<MR>(a, row0, size_t(a.padded_dim) / 2);
  Scores<MR>(a, row0, scores);
  Softmax<MR>(scores, a.factor, a.visible + row0, state + a.padded_dim, stride, weights, shrink);
  int dim = 0;
  for (; dim + 4 * kW <= a.padded_dim; dim += 4 * kW) {
    WeightedSum<MR, 4>(a, state, dim, seen, weights, shrink);
  }
  if (dim < a.padded_dim) WeightedSum<MR, 2>(a, state, dim, seen, weights, shrink);
}

void Attend(const ChunkStep& a) {
  int row = 0;
  for (; row + kTileRows <= a.rows; row += kTileRows) AttendRows<kTileRows>(a, row);
  ForRows(a.rows - row, [&]<int MR>() { AttendRows<MR>(a, row); });
}

// As Scores, with blocks of 16 keys by 32 dimensions transposed in registers. Blocks of different
// keys follow one another, so that their sums do not wait for each other.
template <int MR>
LOOPSERVE_INLINE void StreamScores(const ChunkStep& a, const ChunkSource& from,
                                   float (*scores)[kKeyChunk]) {
  const size_t stride = size_t(a.padded_dim);
  for (int i = 0; i < a.head_dim; i += kGroup) {
    for (int j = 0; j < kKeyChunk; j += kW) {
      I pairs[16];
      S::TransposeWords(from.at + j, i, pairs);
      F acc[MR];
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) acc[r] = i == 0 ? S::Set1(0.0f) : S::Load(scores[r] + j);
      const int* q = QueryPairs(a, 0) + i / 2;
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p, ++q) {
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          acc[r] = Dot(acc[r], pairs[p], _mm512_set1_epi32(q[size_t(r) * stride]));
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) S::Store(scores[r] + j, acc[r]);
      if (from.next == nullptr) continue;
#pragma GCC unroll 16
      for (int k = 0; k < kW; ++k) __builtin_prefetch(from.next[j + k] + i * 2, 0, 2);
    }
  }
}

template <int MR, int NV>
LOOPSERVE_INLINE void StreamWeightedSum(const ChunkStep& a, const ChunkSource& from, int dim,
                                        uint64_t seen, const uint16_t (*weights)[kKeyChunk],
                                        const float* shrink) {
  const size_t stride = size_t(StateStride(a.padded_dim));
  F acc[MR][NV];
  LoadSums<MR, NV>(a.state + dim, stride, shrink, acc);
  const int count = KeysOf(seen);
  for (int j = 0; j < count; j += 2) {
    I value[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v += 2) {
      const size_t at = size_t(dim + v * kW) * 2;
      const I even = _mm512_loadu_si512(from.at[j] + at);
      const I odd = _mm512_loadu_si512(from.at[j + 1] + at);
      if (from.next != nullptr) {
        __builtin_prefetch(from.next[j] + at, 0, 2);
        __builtin_prefetch(from.next[j + 1] + at, 0, 2);
      }
      value[v] = _mm512_unpacklo_epi16(even, odd);
      value[v + 1] = _mm512_unpackhi_epi16(even, odd);
    }
    AddPair<MR, NV>(value, weights, j, acc);
  }
  StoreSums<MR, NV>(acc, stride, a.state + dim);
}

template <int MR>
[[gnu::noinline]] void StreamRows(const ChunkStep& a, const ChunkSource& keys,
                                  const ChunkSource& values) {
  alignas(64) float scores[MR][kKeyChunk];
  alignas(64) uint16_t weights[MR][kKeyChunk];
  float shrink[MR];
  const uint64_t seen = SeenBy<MR>(a.visible);
  StreamScores<MR>(a, keys, scores);
  Softmax<MR>(scores, a.factor, a.visible, a.state + a.padded_dim,
              size_t(StateStride(a.padded_dim)), weights, shrink);
  if (seen == 0) return;
  int dim = 0;
  for (; dim + 4 * kW <= a.padded_dim; dim += 4 * kW) {
    StreamWeightedSum<MR, 4>(a, values, dim, seen, weights, shrink);
  }
  if (dim < a.padded_dim) StreamWeightedSum<MR, 2>(a, values, dim, seen, weights, shrink);
}

void Stream(const ChunkStep& a, const ChunkSource& keys, const ChunkSource& values) {
  ForRows(a.rows, [&]<int MR>() { StreamRows<MR>(a, keys, values); });
}

LOOPSERVE_INLINE float GatherScore(const GatherStep& a, int j) {
  F sum = S::Set1(0.0f);
  for (int i = 0; i < a.head_dim; i += kGroup) {
    sum = Dot(sum, LoadGroup(a.keys[j], i, a.head_dim), _mm512_loadu_si512(Pairs(a.q) + i / 2));
  }
  return S::ReduceAdd(sum);
}

void Gather(const GatherStep& a) {
  alignas(64) float scores[1][kKeyChunk];
  alignas(64) uint16_t weights[1][kKeyChunk];
  for (int j = 0; j < a.count; ++j) scores[0][j] = GatherScore(a, j);
  for (int j = a.count; j < kKeyChunk; ++j) scores[0][j] = kNever;
  const uint64_t all = ~uint64_t{0};
  float shrink[1];
  Softmax<1>(scores, a.factor, &all, a.state + a.padded_dim, 0, weights, shrink);
  for (int dim = 0; dim < a.padded_dim; dim += kGroup) {
    F acc[1][2];
    LoadSums<1, 2>(a.state + dim, 0, shrink, acc);
    for (int j = 0; j < a.count; j += 2) {
      const I even = LoadGroup(a.values[j], dim, a.head_dim);
      const I odd =
          j + 1 < a.count ? LoadGroup(a.values[j + 1], dim, a.head_dim) : _mm512_setzero_si512();
      const I value[2] = {_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
      AddPair<1, 2>(value, weights, j, acc);
    }
    StoreSums<1, 2>(acc, 0, a.state + dim);
  }
}

// Where dimension d of 32 lies among their sums.
constexpr int PlaceOf(int d) { return d / 8 * 4 + d % 4 + (d % 8 < 4 ? 0 : kW); }
struct alignas(64) Places {
  int32_t of[kGroup];
};
constexpr Places kPlaces = [] {
  Places places{};
  for (int d = 0; d < kGroup; ++d) places.of[d] = PlaceOf(d);
  return places;
}();

void Finish(const float* state, int head_dim, int padded_dim, float* out) {
  const float total = S::ReduceAdd(S::Load(state + padded_dim));
  const bool none = state[padded_dim + kLanes] == kNever;
  const F zero = S::Set1(0.0f);
  for (int d = 0; d < head_dim; d += kW) {
    const float* group = state + d / kGroup * kGroup;
    const I places = _mm512_load_si512(kPlaces.of + d % kGroup);
    const F sum = _mm512_permutex2var_ps(S::Load(group), places, S::Load(group + kW));
    // Adding zero makes -0 into 0: which of the two a sum ends at may depend on unseen keys.
    const F mean = none ? zero : S::Add(_mm512_div_ps(sum, S::Set1(total)), zero);
    _mm512_mask_storeu_ps(out + d, FirstLanes(head_dim - d), mean);
  }
}

constexpr ChunkKernels kTable = {LoadQuery, LoadKeys, LoadValues,   Attend,
                                 Stream,    Gather,   Float::Merge, Finish};

}  // namespace

const ChunkKernels& Avx512Bf16ChunkKernels() { return kTable; }

}  // namespace loopserve::worker::cpu_attention
