// Attention over int8 keys and values on AVX-512's 8-bit dot product: codes are taken as the arena
// holds them, queries and softmax weights are rounded to integers of 16 bits and multiplied in two
// planes of 8. Sums of products are exact, so their order cannot matter.
//
// A row's score for a key is sum(q * code), by the key's scale. Its weights, each by its value's
// scale, are rounded to 1 / 65535 of their largest in the chunk; sums of weights are float32.
//
// Queries: see Query. Keys [padded_dim / 4, kKeyChunk] words of four dimensions, codes + 128.
// Values [kKeyChunk / 4, padded_dim] words of four keys; within 64 dimensions first the leading
// four of each 16, then the next four, as unpacking leaves them, and sums in that order too, until
// `finish`.
#include "worker/backend/cpu/attention/dot_rows_avx512.h"

namespace loopserve::worker::cpu_attention {
namespace {

constexpr int kGroup = 64;       // codes in a vector
constexpr float kTiny = 1e-30f;  // what is below is zero, so that inverses are finite
constexpr float kWeightSteps = 65535;
static_assert(kInt8DimAlign == kGroup && kKeyChunk == 4 * kW);

// Sums have the type that the instruction's own operands have: gcc copies others from register to
// register.
typedef int32_t Ints __attribute__((vector_size(64)));

// sum + products of unsigned bytes and signed ones, four to a word.
LOOPSERVE_INLINE Ints Dot(Ints sum, I unsigned_bytes, I signed_bytes) {
  return reinterpret_cast<Ints>(
      _mm512_dpbusd_epi32(reinterpret_cast<I>(sum), unsigned_bytes, signed_bytes));
}
LOOPSERVE_INLINE F ToFloats(Ints x) { return _mm512_cvtepi32_ps(reinterpret_cast<I>(x)); }
LOOPSERVE_INLINE I Word(const void* at) {
  int word;
  __builtin_memcpy(&word, at, sizeof word);
  return _mm512_set1_epi32(word);
}
// Codes [i, i + 64) of a stored vector of `dim`; zeros beyond it.
LOOPSERVE_INLINE I LoadCodes(const std::byte* at, int i, int dim) {
  const int left = dim - i;
  return _mm512_maskz_loadu_epi8(left >= kGroup ? ~__mmask64{0} : (__mmask64{1} << left) - 1,
                                 at + i);
}
LOOPSERVE_INLINE I PlusHalf(I codes) {  // + 128
  return _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
}

// A row's query in its padded_dim floats' room: q = step * (256 * high + low), the planes [dim] of
// signed bytes each. What they give over codes + 128 is too large by `surplus`.
struct Query {
  explicit Query(const float* at, int padded_dim)
      : high(reinterpret_cast<const int8_t*>(at)), low(high + padded_dim) {
    __builtin_memcpy(&step, low + padded_dim, sizeof step);
    __builtin_memcpy(&surplus, low + padded_dim + sizeof step, sizeof surplus);
  }
  const int8_t* high;
  const int8_t* low;
  float step;  // by scale * log2(e)
  int surplus;
};

LOOPSERVE_INLINE float LargestMagnitude(const float* from, int dim) {
  I top = _mm512_setzero_si512();  // bits of magnitudes order like magnitudes, NaN above all
  for (int i = 0; i < dim; i += kW) {
    const I x = _mm512_castps_si512(_mm512_maskz_loadu_ps(FirstLanes(dim - i), from + i));
    top = _mm512_max_epu32(top, _mm512_and_si512(x, _mm512_set1_epi32(0x7fffffff)));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(top);
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  return largest;
}

void LoadQuery(const float* from, int head_dim, int padded_dim, float factor, float* q) {
  // A low plane of -128 ... 127 beside it fits, and so does the sum over all dimensions.
  const int fits = 0x7fffffff / 128 / head_dim;
  const int most = fits < 127 * 256 + 127 ? fits : 127 * 256 + 127;
  const float largest = LargestMagnitude(from, head_dim);
  const bool zero = largest < kTiny;
  const float step = zero ? 1.0f : largest / static_cast<float>(most);
  const F inverse = S::Set1(zero ? 0.0f : static_cast<float>(most) / largest);
  auto* high = reinterpret_cast<int8_t*>(q);
  int8_t* low = high + padded_dim;
  I sum = _mm512_setzero_si512();
  for (int i = 0; i < padded_dim; i += kW) {
    const F x = _mm512_maskz_loadu_ps(FirstLanes(head_dim - i), from + i);
    const I steps = _mm512_cvtps_epi32(S::Mul(x, inverse));
    const I highs = _mm512_srai_epi32(_mm512_add_epi32(steps, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + i), _mm512_cvtepi32_epi8(highs));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low + i), _mm512_cvtepi32_epi8(steps));
    sum = _mm512_add_epi32(sum, steps);
  }
  const float by_factor = step * factor;
  const int surplus = 128 * _mm512_reduce_add_epi32(sum);
  __builtin_memcpy(low + padded_dim, &by_factor, sizeof by_factor);
  __builtin_memcpy(low + padded_dim + sizeof by_factor, &surplus, sizeof surplus);
}

LOOPSERVE_INLINE Query QueryOf(const ChunkStep& a, int r) {
  return Query(a.q + size_t(r) * size_t(a.padded_dim), a.padded_dim);
}

// Words of 64 dimensions of 16 keys.
LOOPSERVE_INLINE void TransposeCodes(const std::byte* const* at, int i, int dim, I (&x)[16]) {
#pragma GCC unroll 16
  for (int k = 0; k < 16; ++k) x[k] = PlusHalf(LoadCodes(at[k], i, dim));
  S::Transpose(x);
}

void LoadKeys(const ChunkSource& from, float* keys) {
  for (int j = 0; j < kKeyChunk; ++j) Float::Prefetch(from, j);
  auto* to = reinterpret_cast<int*>(keys);
  for (int j = 0; j < kKeyChunk; j += kW) {
    for (int i = 0; i < from.head_dim; i += kGroup) {
      I x[16];
      TransposeCodes(from.at + j, i, from.head_dim, x);
#pragma GCC unroll 16
      for (int w = 0; w < 16; ++w) {
        _mm512_storeu_si512(to + size_t(i / 4 + w) * kKeyChunk + j, x[w]);
      }
    }
  }
}

// Words of four keys at dimensions [i, i + 64).
LOOPSERVE_INLINE void Interleave(const I (&keys)[4], I (&words)[4]) {
  const I low01 = _mm512_unpacklo_epi8(keys[0], keys[1]);
  const I low23 = _mm512_unpacklo_epi8(keys[2], keys[3]);
  const I high01 = _mm512_unpackhi_epi8(keys[0], keys[1]);
  const I high23 = _mm512_unpackhi_epi8(keys[2], keys[3]);
  words[0] = _mm512_unpacklo_epi16(low01, low23);
  words[1] = _mm512_unpackhi_epi16(low01, low23);
  words[2] = _mm512_unpacklo_epi16(high01, high23);
  words[3] = _mm512_unpackhi_epi16(high01, high23);
}

void LoadValues(const ChunkSource& from, int padded_dim, float* values) {
  auto* to = reinterpret_cast<int*>(values);
  for (int j = 0; j < kKeyChunk; j += 4, to += padded_dim) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) Float::Prefetch(from, j + k);
    for (int i = 0; i < padded_dim; i += kGroup) {
      I keys[4], words[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) keys[k] = LoadCodes(from.at[j + k], i, from.head_dim);
      Interleave(keys, words);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) _mm512_storeu_si512(to + i + v * kW, words[v]);
    }
  }
}

// Two sums of MR rows for NV vectors: of the high planes and of the low ones.
template <int MR, int NV>
struct Sums {
  Ints high[MR][NV];
  Ints low[MR][NV];

  [[gnu::always_inline]] inline Sums() {
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) high[r][v] = low[r][v] = Ints{};
    }
  }
  [[gnu::always_inline]] inline Ints Total(int r, int v) const {
    return (high[r][v] << 8) + low[r][v];
  }
};

// Adds word `at` of the queries' dimensions for the keys of each vector.
template <int MR, int NV>
LOOPSERVE_INLINE void AddDims(const I (&keys)[NV], const int8_t* const (&high)[MR],
                              const int8_t* const (&low)[MR], int at, Sums<MR, NV>& sums) {
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const I of_high = Word(high[r] + at);
    const I of_low = Word(low[r] + at);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      sums.high[r][v] = Dot(sums.high[r][v], keys[v], of_high);
      sums.low[r][v] = Dot(sums.low[r][v], keys[v], of_low);
    }
  }
}

// Scores, but for the step of the query.
template <int MR, int NV>
LOOPSERVE_INLINE void StoreScores(const Sums<MR, NV>& sums, const int (&surplus)[MR],
                                  const float* key_scales, int j, float (*scores)[kKeyChunk]) {
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Ints total = sums.Total(r, v) - surplus[r];
      S::Store(scores[r] + j + v * kW, S::Mul(ToFloats(total), S::Load(key_scales + j + v * kW)));
    }
  }
}

// The queries of MR rows.
template <int MR>
struct Queries {
  [[gnu::always_inline]] inline Queries(const ChunkStep& a, int row0) {
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const Query query = QueryOf(a, row0 + r);
      high[r] = query.high;
      low[r] = query.low;
      factor[r] = query.step;
      surplus[r] = query.surplus;
    }
  }
  const int8_t* high[MR];
  const int8_t* low[MR];
  float factor[MR];
  int surplus[MR];
};

template <int MR>
LOOPSERVE_INLINE void Scores(const ChunkStep& a, const Queries<MR>& q, float (*scores)[kKeyChunk]) {
  const int* keys = reinterpret_cast<const int*>(a.keys);
  const int words = (a.head_dim + 3) / 4;
  for (int j = 0; j < kKeyChunk; j += 2 * kW) {
    Sums<MR, 2> sums;
    for (int w = 0; w < words; ++w) {
      const int* at = keys + size_t(w) * kKeyChunk + j;
      const I k[2] = {_mm512_loadu_si512(at), _mm512_loadu_si512(at + kW)};
      AddDims<MR, 2>(k, q.high, q.low, 4 * w, sums);
    }
    StoreScores<MR, 2>(sums, q.surplus, a.key_scales, j, scores);
  }
}

// The same straight from the arena: blocks of 16 keys by 64 dimensions transposed in registers.
template <int MR>
LOOPSERVE_INLINE void StreamScores(const ChunkStep& a, const ChunkSource& from,
                                   const Queries<MR>& q, float (*scores)[kKeyChunk]) {
  for (int j = 0; j < kKeyChunk; j += kW) {
    Sums<MR, 1> sums;
    for (int i = 0; i < a.head_dim; i += kGroup) {
      I words[16];
      TransposeCodes(from.at + j, i, a.head_dim, words);
#pragma GCC unroll 16
      for (int w = 0; w < 16; ++w) {
        const I keys[1] = {words[w]};
        AddDims<MR, 1>(keys, q.high, q.low, i + 4 * w, sums);
      }
      if (from.next == nullptr) continue;
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) __builtin_prefetch(from.next[j + k] + i, 0, 2);
    }
    StoreScores<MR, 1>(sums, q.surplus, from.scales, j, scores);
  }
}

// The softmax weights of MR rows by their values' scales, in steps of the row's own: 256 * high +
// low. `shrink` is by how much older sums do.
template <int MR>
struct Weights {
  alignas(64) uint8_t high[MR][kKeyChunk];
  alignas(64) uint8_t low[MR][kKeyChunk];
  float step[MR];
  float shrink[MR];
};

// Rounds a row's weights, none of them negative; returns the step.
LOOPSERVE_INLINE float RoundWeights(const F (&weights)[4], uint8_t* high, uint8_t* low) {
  I bits[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) bits[i] = _mm512_castps_si512(weights[i]);
  const uint32_t top = _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_max_epu32(bits[0], bits[1]), _mm512_max_epu32(bits[2], bits[3])));
  float largest;
  __builtin_memcpy(&largest, &top, sizeof largest);
  const bool zero = largest < kTiny;
  const F inverse = S::Set1(zero ? 0.0f : kWeightSteps / largest);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I steps = _mm512_cvtps_epi32(S::Mul(weights[i], inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(high + i * kW),
                    _mm512_cvtepi32_epi8(_mm512_srli_epi32(steps, 8)));
    _mm_store_si128(reinterpret_cast<__m128i*>(low + i * kW), _mm512_cvtepi32_epi8(steps));
  }
  return zero ? 0.0f : largest / kWeightSteps;
}

template <int MR>
LOOPSERVE_INLINE void Softmax(float (*scores)[kKeyChunk], const float (&factor)[MR],
                              const uint64_t* visible, const float* value_scales, float* lanes,
                              size_t stride, Weights<MR>& weights) {
  float shift[MR];
  Raise<MR>(scores, factor, visible, lanes, stride, shift, weights.shrink);
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const F shifts = S::Set1(-shift[r]);
    const F factors = S::Set1(factor[r]);
    F sum = S::Mul(S::Load(lanes + size_t(r) * stride), S::Set1(weights.shrink[r]));
    F scaled[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const F weight = S::RoughExp2(S::Fma(S::Load(scores[r] + i * kW), factors, shifts));
      sum = S::Add(sum, weight);
      scaled[i] = S::Mul(weight, S::Load(value_scales + i * kW));
    }
    S::Store(lanes + size_t(r) * stride, sum);
    weights.step[r] = RoundWeights(scaled, weights.high[r], weights.low[r]);
  }
}

// Adds four keys, from j on.
template <int MR, int NV>
LOOPSERVE_INLINE void AddKeys(const I* words, const Weights<MR>& weights, int j,
                              Sums<MR, NV>& sums) {
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const I high = Word(&weights.high[r][j]);
    const I low = Word(&weights.low[r][j]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      sums.high[r][v] = Dot(sums.high[r][v], high, words[v]);
      sums.low[r][v] = Dot(sums.low[r][v], low, words[v]);
    }
  }
}

// state := shrink * state + the sums, for NV vectors.
template <int MR, int NV>
LOOPSERVE_INLINE void AddToState(const Sums<MR, NV>& sums, const Weights<MR>& weights,
                                 size_t stride, float* state) {
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    const F shrink = S::Set1(weights.shrink[r]);
    const F step = S::Set1(weights.step[r]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* at = state + size_t(r) * stride + v * kW;
      S::Store(at, S::Fma(ToFloats(sums.Total(r, v)), step, S::Mul(S::Load(at), shrink)));
    }
  }
}

template <int MR, int NV>
LOOPSERVE_INLINE void WeightedSum(const ChunkStep& a, float* state, int dim, int count,
                                  const Weights<MR>& weights) {
  Sums<MR, NV> sums;
  const int* values = reinterpret_cast<const int*>(a.values) + dim;
  for (int j = 0; j < count; j += 4, values += a.padded_dim) {
    I words[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) words[v] = _mm512_loadu_si512(values + v * kW);
    AddKeys<MR, NV>(words, weights, j, sums);
  }
  AddToState<MR, NV>(sums, weights, size_t(StateStride(a.padded_dim)), state + dim);
}

// Values [dim, dim + 64), straight from the arena; of more than three rows in two passes, because
// the sums of all would not fit the registers.
template <int MR, int NV>
LOOPSERVE_INLINE void StreamWeightedSum(const ChunkStep& a, const ChunkSource& from, int dim,
                                        int count, const Weights<MR>& weights) {
#pragma GCC unroll 2
  for (int part = 0; part < 4; part += NV) {
    Sums<MR, NV> sums;
    for (int j = 0; j < count; j += 4) {
      I keys[4], words[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        keys[k] = LoadCodes(from.at[j + k], dim, a.head_dim);
        if (part == 0 && from.next != nullptr) __builtin_prefetch(from.next[j + k] + dim, 0, 2);
      }
      Interleave(keys, words);
      AddKeys<MR, NV>(words + part, weights, j, sums);
    }
    AddToState<MR, NV>(sums, weights, size_t(StateStride(a.padded_dim)), a.state + dim + part * kW);
  }
}

template <int MR>
[[gnu::noinline]] void AttendRows(const ChunkStep& a, int row0) {
  const uint64_t seen = SeenBy<MR>(a.visible + row0);
  if (seen == 0) return;
  alignas(64) float scores[MR][kKeyChunk];
  Weights<MR> weights;
  const size_t stride = size_t(StateStride(a.padded_dim));
  float* state = a.state + size_t(row0) * stride;
  PrefetchNextRows<MR>(a, row0, size_t(a.padded_dim) / 2 + 2);
  const Queries<MR> queries(a, row0);
  Scores<MR>(a, queries, scores);
  Softmax<MR>(scores, queries.factor, a.visible + row0, a.value_scales, state + a.padded_dim,
              stride, weights);
  for (int dim = 0; dim < a.padded_dim; dim += 2 * kW) {
    WeightedSum<MR, 2>(a, state, dim, KeysOf(seen), weights);
  }
}

template <int MR>
[[gnu::noinline]] void StreamRows(const ChunkStep& a, const ChunkSource& keys,
                                  const ChunkSource& values) {
  const uint64_t seen = SeenBy<MR>(a.visible);
  if (seen == 0) return;
  alignas(64) float scores[MR][kKeyChunk];
  Weights<MR> weights;
  const Queries<MR> queries(a, 0);
  StreamScores<MR>(a, keys, queries, scores);
  Softmax<MR>(scores, queries.factor, a.visible, values.scales, a.state + a.padded_dim,
              size_t(StateStride(a.padded_dim)), weights);
  constexpr int kVectors = MR <= 3 ? 4 : 2;
  for (int dim = 0; dim < a.padded_dim; dim += kGroup) {
    StreamWeightedSum<MR, kVectors>(a, values, dim, KeysOf(seen), weights);
  }
}

void Attend(const ChunkStep& a) {
  int row = 0;
  for (; row + kTileRows <= a.rows; row += kTileRows) AttendRows<kTileRows>(a, row);
  ForRows(a.rows - row, [&]<int MR>() { AttendRows<MR>(a, row); });
}

void Stream(const ChunkStep& a, const ChunkSource& keys, const ChunkSource& values) {
  ForRows(a.rows, [&]<int MR>() { StreamRows<MR>(a, keys, values); });
}

// By the key's scale, but for the step of the query.
LOOPSERVE_INLINE float GatherScore(const GatherStep& a, const Query& query, int j) {
  Sums<1, 1> sums;
  for (int i = 0; i < a.head_dim; i += kGroup) {
    const I codes = PlusHalf(LoadCodes(a.keys[j], i, a.head_dim));
    sums.high[0][0] = Dot(sums.high[0][0], codes, _mm512_loadu_si512(query.high + i));
    sums.low[0][0] = Dot(sums.low[0][0], codes, _mm512_loadu_si512(query.low + i));
  }
  const int total = _mm512_reduce_add_epi32(reinterpret_cast<I>(sums.Total(0, 0)));
  return static_cast<float>(total - query.surplus) * a.key_scales[j];
}

void Gather(const GatherStep& a) {
  alignas(64) float scores[1][kKeyChunk];
  Weights<1> weights;
  const Query query(a.q, a.padded_dim);
  for (int j = 0; j < a.count; ++j) scores[0][j] = GatherScore(a, query, j);
  for (int j = a.count; j < kKeyChunk; ++j) scores[0][j] = kNever;
  const uint64_t all = ~uint64_t{0};
  const float factor[1] = {query.step};
  Softmax<1>(scores, factor, &all, a.value_scales, a.state + a.padded_dim, 0, weights);
  for (int dim = 0; dim < a.padded_dim; dim += kGroup) {
    Sums<1, 4> sums;
    for (int j = 0; j < a.count; j += 4) {
      I keys[4], words[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        keys[k] =
            j + k < a.count ? LoadCodes(a.values[j + k], dim, a.head_dim) : _mm512_setzero_si512();
      }
      Interleave(keys, words);
      AddKeys<1, 4>(words, weights, j, sums);
    }
    AddToState<1, 4>(sums, weights, 0, a.state + dim);
  }
}

// Where dimensions 4n ... 4n + 3 of 64 lie among their sums.
constexpr int PlaceOf(int n) { return n % 4 * kW + n / 4 * 4; }

void Finish(const float* state, int head_dim, int padded_dim, float* out) {
  const float total = S::ReduceAdd(S::Load(state + padded_dim));
  const bool none = state[padded_dim + kLanes] == kNever;
  const __m128 zero = _mm_setzero_ps();
  for (int d = 0; d < head_dim; d += 4) {
    const __m128 sum = _mm_loadu_ps(state + d / kGroup * kGroup + PlaceOf(d % kGroup / 4));
    // Adding zero makes -0 into 0: which of the two a sum ends at may depend on unseen keys.
    const __m128 mean = none ? zero : _mm_add_ps(_mm_div_ps(sum, _mm_set1_ps(total)), zero);
    const int left = head_dim - d;
    _mm_mask_storeu_ps(out + d, static_cast<__mmask8>(left >= 4 ? 0xf : (1 << left) - 1), mean);
  }
}

constexpr ChunkKernels kTable = {LoadQuery, LoadKeys,     LoadValues, Attend,        Stream,
                                 Gather,    Float::Merge, Finish,     KvDtype::kInt8};

}  // namespace

const ChunkKernels& Avx512VnniChunkKernels() { return kTable; }

}  // namespace loopserve::worker::cpu_attention
