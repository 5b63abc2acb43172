// What one warp does on tensor cores: 16 packed rows against keys and values that lie in shared
// memory, 16 keys at a time.
//
// A *group* of 16 keys has its vectors one after the other, each a whole number of 16-byte chunks.
// Chunks are swizzled so that no access meets a bank twice: KeyChunk and ValueChunk say where the
// writer puts a chunk and the reader finds it. A lane reads keys as 16 bytes of one vector, which
// makes the products' inner dimension a permutation of head_dim; queries are loaded in the same
// permutation, and a sum does not care. Codes become bf16 on the way from shared memory to the
// tensor cores, exactly; scales are applied to scores and weights.
#pragma once

#include "worker/backend/cuda/attention/mma.cuh"
#include "worker/backend/cuda/attention/params.cuh"
#include "worker/backend/cuda/kernels/e4m3_to_bf16.cuh"

namespace loopserve::worker::cuda {

constexpr int kGroupKeys = 16;
constexpr unsigned kWholeWarp = 0xffffffffu;

using kvstore::KvDtype;

// Bytes 0 and 2 of a word of codes as two bf16, exactly.
template <KvDtype kDtype>
__device__ uint32_t EvenToBf16(uint32_t word) {
  return kDtype == KvDtype::kInt8 ? EvenBytesToBf16(word) : EvenE4m3ToBf16(word);
}
// Bytes 1 and 3.
template <KvDtype kDtype>
__device__ uint32_t OddToBf16(uint32_t word) {
  return kDtype == KvDtype::kInt8 ? OddBytesToBf16(word) : OddE4m3ToBf16(word);
}

// kDtype: bf16, or codes of a byte. kScaled: the vectors have scales, as codes do and bf16 made of
// them.
template <int kHeadDim, KvDtype kDtype, bool kScaled = kvstore::HasScales(kDtype)>
struct Group {
  static constexpr int kVectorBytes = kHeadDim * int(kvstore::DtypeBytes(kDtype));
  static constexpr int kChunks = kVectorBytes / 16;  // of a vector: 4, 8 or 16
  static constexpr int kSideBytes = kGroupKeys * kVectorBytes;
  static constexpr int kScaleBytes = kScaled ? kGroupKeys * 4 : 0;
  // Keys, values, keys' scales, values' scales.
  static constexpr int kBytes = 2 * (kSideBytes + kScaleBytes);

  static __device__ int KeyChunk(int key, int chunk) {
    return key * kChunks + (kChunks == 4 ? chunk : chunk ^ ((key & 1) << 2));
  }
  static __device__ int ValueChunk(int key, int chunk) {
    return key * kChunks + (chunk ^ (kChunks == 4 ? (key >> 1) & 3 : key & 7));
  }
};

// The 16 packed rows of a warp, g and g + 8 of which are a lane's, and what was summed for them.
template <int kHeadDim, KvDtype kDtype, bool kScaled = kvstore::HasScales(kDtype)>
class WarpRows {
 public:
  using G = Group<kHeadDim, kDtype, kScaled>;
  static constexpr bool kCodes = kvstore::HasScales(kDtype);
  static constexpr int kSteps = kHeadDim / 16;  // of the inner dimension
  static constexpr int kTiles = kHeadDim / 8;   // of the output's columns

  // Packed rows m0 ... m0 + 15; those that do not exist are zeros and see what the last one sees.
  __device__ WarpRows(const AttentionParams& p, const PackedRows& rows, int m0) {
    const int lane = threadIdx.x % 32;
    const int j = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int m = m0 + lane / 4 + 8 * h;
      position_[h] = rows.position_of(min(m, rows.count - 1));
      highest_[h] = -INFINITY;
      total_[h] = 0;
      const auto* q =
          static_cast<const uint16_t*>(p.q) + (m < rows.count ? QueryIndex(p, rows, m) : 0);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint2 four = m < rows.count ? LoadFour(q + FirstDim(step, j)) : make_uint2(0, 0);
        q_[step][h] = four.x;
        q_[step][h + 2] = four.y;
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums_[t][e] = 0;
    }
  }

  // Keys key0 ... key0 + 16 * kGroups - 1, of which those from key_end on do not exist. Groups lie
  // behind each other, each as Group says.
  template <int kGroups>
  __device__ void Add(const unsigned char* groups, int key0, int key_end,
                      const AttentionParams& p) {
    float scores[2 * kGroups][4];
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      ScoreGroup(groups + n * G::kBytes, scores[2 * n], scores[2 * n + 1]);
    }
    Weigh<kGroups>(scores, groups, key0, key_end, p);
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      AddGroup(groups + n * G::kBytes, scores[2 * n], scores[2 * n + 1]);
    }
  }

  __device__ float highest(int h) const { return highest_[h]; }
  // Of all lanes of the row.
  __device__ float Total(int h) const {
    float total = total_[h];
    total += __shfl_xor_sync(kWholeWarp, total, 1);
    return total + __shfl_xor_sync(kWholeWarp, total, 2);
  }
  // Element e of tile t belongs to row h = e / 2 and to this dimension.
  static __device__ int DimOf(int t, int e) {
    const int j = threadIdx.x % 4;
    if constexpr (kCodes) return t / 2 * 16 + 4 * j + 2 * (e & 1) + t % 2;
    return t * 8 + 2 * j + (e & 1);
  }
  __device__ float sum(int t, int e) const { return sums_[t][e]; }

 private:
  // Lane j's four dimensions of an inner step, from this one on.
  static __device__ int FirstDim(int step, int j) {
    if constexpr (kCodes) return step / 4 * 64 + 16 * j + 4 * (step % 4);
    return step / 2 * 32 + 8 * j + 4 * (step % 2);
  }
  // As the fragment of the keys pairs them: (0, 1), (2, 3), and for codes (0, 2), (1, 3).
  static __device__ uint2 LoadFour(const uint16_t* q) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(q);
    const uint32_t low = pairs[0];
    const uint32_t high = pairs[1];
    if constexpr (kCodes) {
      return make_uint2((low & 0xffffu) | high << 16, low >> 16 | (high & 0xffff0000u));
    }
    return make_uint2(low, high);
  }

  __device__ void ScoreGroup(const unsigned char* group, float (&first)[4], float (&second)[4]) {
    const int lane = threadIdx.x % 32;
    const auto* chunks = reinterpret_cast<const uint4*>(group);
#pragma unroll
    for (int e = 0; e < 4; ++e) first[e] = second[e] = 0;
#pragma unroll
    for (int n = 0; n < G::kChunks / 4; ++n) {
      const int key = lane / 4;
      const int chunk = 4 * n + lane % 4;
      ScoreChunk(chunks[G::KeyChunk(key, chunk)], n, first);
      ScoreChunk(chunks[G::KeyChunk(key + 8, chunk)], n, second);
    }
  }

  __device__ void ScoreChunk(uint4 chunk, int n, float (&scores)[4]) {
    if constexpr (kCodes) {
      const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Mma(scores, q_[4 * n + i], EvenToBf16<kDtype>(words[i]), OddToBf16<kDtype>(words[i]));
      }
    } else {
      Mma(scores, q_[2 * n], chunk.x, chunk.y);
      Mma(scores, q_[2 * n + 1], chunk.z, chunk.w);
    }
  }

  // The scale of key (or value) number `key` of all groups.
  static __device__ float Scale(const unsigned char* groups, int side, int key) {
    const unsigned char* scales = groups + key / kGroupKeys * G::kBytes + 2 * G::kSideBytes;
    return reinterpret_cast<const float*>(scales)[side * kGroupKeys + key % kGroupKeys];
  }

  // Scores to weights, in place; rescales the sums. scores[n] holds keys 8 * n + 2 * j and the
  // next.
  template <int kGroups>
  __device__ void Weigh(float (&scores)[2 * kGroups][4], const unsigned char* groups, int key0,
                        int key_end, const AttentionParams& p) {
    const int j = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float scale = p.scale_log2;
        if constexpr (kScaled) scale *= Scale(groups, 0, 8 * n + 2 * j + (e & 1));
        scores[n][e] *= scale;
      }
    }
    Hide<kGroups>(scores, key0, key_end, p.window);
    float highest[2] = {highest_[0], highest_[1]};
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) highest[e >> 1] = fmaxf(highest[e >> 1], scores[n][e]);
    }
    float reference[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      highest[h] = fmaxf(highest[h], __shfl_xor_sync(kWholeWarp, highest[h], 1));
      highest[h] = fmaxf(highest[h], __shfl_xor_sync(kWholeWarp, highest[h], 2));
      reference[h] = highest[h] == -INFINITY ? 0.0f : highest[h];
    }
    Rescale(highest, reference);
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float weight = Exp2(scores[n][e] - reference[e >> 1]);
        total_[e >> 1] += weight;
        if constexpr (kScaled) {
          // What does not exist has any scale.
          if (weight != 0) weight *= Scale(groups, 1, 8 * n + 2 * j + (e & 1));
        }
        scores[n][e] = weight;
      }
    }
  }

  // -infinity for keys that a row does not see; mostly there are none.
  template <int kGroups>
  __device__ void Hide(float (&scores)[2 * kGroups][4], int key0, int key_end, int window) const {
    const int last = key0 + kGroups * kGroupKeys - 1;
    const bool all =
        last < key_end && Sees(position_[0], last, window) && Sees(position_[1], key0, window);
    if (!__any_sync(kWholeWarp, !all)) return;
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = key0 + 8 * n + static_cast<int>(threadIdx.x % 4) * 2 + (e & 1);
        if (key >= key_end || !Sees(position_[e >> 1], key, window)) scores[n][e] = -INFINITY;
      }
    }
  }

  __device__ void Rescale(const float (&highest)[2], const float (&reference)[2]) {
    const bool rises = highest[0] != highest_[0] || highest[1] != highest_[1];
    if (!__any_sync(kWholeWarp, rises)) return;
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      keep[h] = Exp2(highest_[h] - reference[h]);
      highest_[h] = highest[h];
      total_[h] *= keep[h];
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums_[t][e] *= keep[e >> 1];
    }
  }

  __device__ void AddGroup(const unsigned char* group, const float (&first)[4],
                           const float (&second)[4]) {
    const int lane = threadIdx.x % 32;
    const uint32_t weights[4] = {PackBf16(first[0], first[1]), PackBf16(first[2], first[3]),
                                 PackBf16(second[0], second[1]), PackBf16(second[2], second[3])};
    const auto* chunks = reinterpret_cast<const uint4*>(group + G::kSideBytes);
    const int key = lane % 16;
#pragma unroll
    for (int n = 0; n < G::kChunks / 2; ++n) {
      uint32_t r[4];
      LoadTransposed(r, chunks + G::ValueChunk(key, 2 * n + lane / 16));
      if constexpr (kCodes) {
        Mma(sums_[4 * n], weights, EvenToBf16<kDtype>(r[0]), EvenToBf16<kDtype>(r[1]));
        Mma(sums_[4 * n + 1], weights, OddToBf16<kDtype>(r[0]), OddToBf16<kDtype>(r[1]));
        Mma(sums_[4 * n + 2], weights, EvenToBf16<kDtype>(r[2]), EvenToBf16<kDtype>(r[3]));
        Mma(sums_[4 * n + 3], weights, OddToBf16<kDtype>(r[2]), OddToBf16<kDtype>(r[3]));
      } else {
        Mma(sums_[2 * n], weights, r[0], r[1]);
        Mma(sums_[2 * n + 1], weights, r[2], r[3]);
      }
    }
  }

  uint32_t q_[kSteps][4];
  float sums_[kTiles][4];
  float highest_[2];
  float total_[2];  // of this lane's keys
  int position_[2];
};

}  // namespace loopserve::worker::cuda
