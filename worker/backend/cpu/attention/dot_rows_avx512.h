// What the tables on AVX-512's dot products share: rows whose scores are rounded into weights. Only
// kernels_avx512_bf16.cc and kernels_avx512_vnni.cc include this: elsewhere it is empty.
#pragma once

#ifdef __AVX512BW__

#include "worker/backend/cpu/attention/chunk_kernels_impl.h"
#include "worker/backend/cpu/attention/simd_avx512.h"

namespace loopserve::worker::cpu_attention {
namespace {

using F = __m512;
using I = __m512i;
using S = Avx512;
using Float = ChunkKernelsFor<Avx512>;

constexpr int kW = S::kWidth;
constexpr int kTileRows = Float::kTileRows;
constexpr float kNever = Float::kNever;

LOOPSERVE_INLINE __mmask16 FirstLanes(int count) {
  return static_cast<__mmask16>(count >= kW ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// The keys that any of MR rows sees.
template <int MR>
LOOPSERVE_INLINE uint64_t SeenBy(const uint64_t* visible) {
  uint64_t seen = 0;
  for (int r = 0; r < MR; ++r) seen |= visible[r];
  return seen;
}

// Fetches what the tile after [row0, row0 + MR) needs: its state and `query_floats` of each query.
template <int MR>
LOOPSERVE_INLINE void PrefetchNextRows(const ChunkStep& a, int row0, size_t query_floats) {
  if (row0 + MR >= a.rows) return;
  const size_t stride = size_t(StateStride(a.padded_dim));
  Float::PrefetchFloats(a.state + size_t(row0 + MR) * stride, MR * stride);
  for (int r = 0; r < MR; ++r) {
    const float* next = a.q + size_t(row0 + MR + r) * size_t(a.padded_dim);
    Float::PrefetchFloats(next, query_floats);
  }
}

// The first step of softmax over a chunk: hides scores of keys that a row does not see and raises
// its highest score so far. A weight is 2^(factor * score - shift), what was summed before shrinks
// by `shrink`.
template <int MR>
LOOPSERVE_INLINE void Raise(float (*scores)[kKeyChunk], const float (&factor)[MR],
                            const uint64_t* visible, float* lanes, size_t stride,
                            float (&shift)[MR], float (&shrink)[MR]) {
  alignas(64) float fall[kW] = {};
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    float* highest = lanes + size_t(r) * stride + kLanes;
    if (visible[r] != ~uint64_t{0}) Float::Hide(scores[r], visible[r]);
    const F top = S::Max(S::Max(S::Load(scores[r]), S::Load(scores[r] + kW)),
                         S::Max(S::Load(scores[r] + 2 * kW), S::Load(scores[r] + 3 * kW)));
    const float of_chunk = S::ReduceMax(top) * factor[r];
    const float new_highest = of_chunk > *highest ? of_chunk : *highest;
    shift[r] = new_highest == kNever ? 0.0f : new_highest;
    fall[r] = *highest - shift[r];
    *highest = new_highest;
  }
  S::Store(fall, S::Exp2(S::Load(fall)));
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) shrink[r] = fall[r];
}

}  // namespace
}  // namespace loopserve::worker::cpu_attention

#endif  // __AVX512BW__
