// The chunk kernels over an instruction set S, which supplies vectors and their arithmetic.
//
// Include only from kernels_<isa>.cc: S lies in that file's anonymous namespace, so what is
// instantiated here is its own and cannot be mistaken for another instruction set's code.
//
//   S::F  a vector of S::kWidth floats;  S::kTileVectors  vectors beside kTileRows rows in a tile
//   Load Store Set1 Add Mul Sub Max Fma(a, b, c) = a * b + c  ReduceMax ReduceAdd
//   Exp2(x), x <= 0: 0 below -126;  Select(x, bits): -infinity where a bit is clear
//   WidenBf16(const uint16_t*)  WidenInt8(const std::byte*)  WidenE4m3(const std::byte*)
//   TransposeKeys(source, keys): lays out as many dimensions as it can, and returns how many
// Codes of int8 and E4M3 become floats when a chunk is laid out, so what follows is the same.
//   kStreams: it has TransposeWords(at, i, words) (word w of the result holds values i + 2w and
//   i + 2w + 1 of the kWidth keys), EvenBf16(word), OddBf16(word)
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/cpu/attention/chunk_kernels.h"

#define LOOPSERVE_INLINE [[gnu::always_inline]] static inline

namespace loopserve::worker::cpu_attention {

using kvstore::KvDtype;

// Calls run.operator()<rows>() for 1 ... 6 rows, and nothing for none: tiles have a size that the
// compiler knows.
template <class Run>
LOOPSERVE_INLINE void ForRows(int rows, Run run) {
  switch (rows) {
    case 6:
      return run.template operator()<6>();
    case 5:
      return run.template operator()<5>();
    case 4:
      return run.template operator()<4>();
    case 3:
      return run.template operator()<3>();
    case 2:
      return run.template operator()<2>();
    case 1:
      return run.template operator()<1>();
    default:
      return;
  }
}

// Keys up to the last of those that any row sees (not none): those after it weigh nothing, so
// leaving them out is exact.
LOOPSERVE_INLINE int KeysOf(uint64_t seen) { return 64 - __builtin_clzll(seen); }

// Codes of a byte each, with scales.
LOOPSERVE_INLINE constexpr bool IsCodes(KvDtype dtype) {
  return dtype == KvDtype::kInt8 || dtype == KvDtype::kFp8;
}

LOOPSERVE_INLINE float FloatOf(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// The number of an E4M3 code, exactly: its exponent and mantissa are the same bits in a float whose
// exponent is smaller by 120. The exponent 0 stands for what 1 does, without the leading one. Codes
// of NaN do not occur.
LOOPSERVE_INLINE float E4m3Value(std::byte code) {
  const uint32_t bits = uint32_t(code);
  const uint32_t magnitude = bits & 0x7f;
  const uint32_t exponent = magnitude < 8 ? 121 : 120;
  const float leading = magnitude < 8 ? 0x1p-6f : 0.0f;
  const float value = FloatOf((exponent << 23) + (magnitude << 20)) - leading;
  return bits >= 0x80 ? -value : value;
}

template <class S>
struct ChunkKernelsFor {
  using F = typename S::F;
  static constexpr int kW = S::kWidth;
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = S::kTileVectors;
  static constexpr float kNever = -__builtin_inff();

  // A stored value, without its scale.
  static float ValueAt(const std::byte* at, KvDtype dtype, int i) {
    if (dtype == KvDtype::kInt8) return float(int8_t(at[i]));
    if (dtype == KvDtype::kFp8) return E4m3Value(at[i]);
    if (dtype == KvDtype::kBf16) {
      uint16_t half;
      __builtin_memcpy(&half, at + size_t(i) * 2, 2);
      return FloatOf(uint32_t{half} << 16);
    }
    float value;
    __builtin_memcpy(&value, at + size_t(i) * 4, 4);
    return value;
  }
  // kW of them.
  LOOPSERVE_INLINE F LoadStored(const std::byte* at, KvDtype dtype, int i) {
    if (dtype == KvDtype::kInt8) return S::WidenInt8(at + i);
    if (dtype == KvDtype::kFp8) return S::WidenE4m3(at + i);
    return dtype == KvDtype::kBf16 ? S::WidenBf16(reinterpret_cast<const uint16_t*>(at) + i)
                                   : S::Load(reinterpret_cast<const float*>(at) + i);
  }
  static float ScaleOf(const ChunkSource& from, int j) {
    return IsCodes(from.dtype) ? from.scales[j] : 1.0f;
  }
  static int BytesOf(KvDtype dtype) { return IsCodes(dtype) ? 1 : dtype == KvDtype::kBf16 ? 2 : 4; }

  LOOPSERVE_INLINE void Prefetch(const ChunkSource& from, int j) {
    if (from.next == nullptr) return;
    const int bytes = from.head_dim * BytesOf(from.dtype);
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(from.next[j] + i);
  }

  LOOPSERVE_INLINE void PrefetchFloats(const float* at, size_t count) {
    for (size_t i = 0; i < count; i += 16) __builtin_prefetch(at + i);
  }

  static void LoadQuery(const float* from, int head_dim, int padded_dim, float factor, float* q) {
    for (int i = 0; i < head_dim; ++i) q[i] = from[i] * factor;
    for (int i = head_dim; i < padded_dim; ++i) q[i] = 0.0f;
  }

  static void LoadKeys(const ChunkSource& from, float* keys) {
    for (int j = 0; j < kKeyChunk; ++j) Prefetch(from, j);
    const int done = S::TransposeKeys(from, keys);
    for (int j = 0; j < kKeyChunk; ++j) {
      const float scale = ScaleOf(from, j);
      for (int i = done; i < from.head_dim; ++i) {
        keys[size_t(i) * kKeyChunk + size_t(j)] = ValueAt(from.at[j], from.dtype, i) * scale;
      }
    }
  }

  static void LoadValues(const ChunkSource& from, int padded_dim, float* values) {
    for (int j = 0; j < kKeyChunk; ++j) {
      Prefetch(from, j);
      float* to = values + size_t(j) * size_t(padded_dim);
      switch (from.dtype) {
        case KvDtype::kBf16:
          LoadValue<KvDtype::kBf16>(from, j, to);
          break;
        case KvDtype::kF32:
          LoadValue<KvDtype::kF32>(from, j, to);
          break;
        case KvDtype::kInt8:
          LoadValue<KvDtype::kInt8>(from, j, to);
          break;
        case KvDtype::kFp8:
          LoadValue<KvDtype::kFp8>(from, j, to);
      }
      for (int i = from.head_dim; i < padded_dim; ++i) to[i] = 0.0f;
    }
  }

  template <KvDtype kDtype>
  LOOPSERVE_INLINE void LoadValue(const ChunkSource& from, int j, float* to) {
    const float scale = IsCodes(kDtype) ? from.scales[j] : 1.0f;
    int i = 0;
    for (; i + kW <= from.head_dim; i += kW) {
      const F x = LoadStored(from.at[j], kDtype, i);
      S::Store(to + i, IsCodes(kDtype) ? S::Mul(x, S::Set1(scale)) : x);
    }
    for (; i < from.head_dim; ++i) to[i] = ValueAt(from.at[j], kDtype, i) * scale;
  }

  template <int MR>
  LOOPSERVE_INLINE void Scores(const ChunkStep& a, int row0, float (*scores)[kKeyChunk]) {
    constexpr int NV = kTileVectors;
    const float* q = a.q + size_t(row0) * size_t(a.padded_dim);
    for (int lane = 0; lane < kKeyChunk; lane += kW * NV) {
      F acc[MR][NV];
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = S::Set1(0.0f);
      }
      const float* keys = a.keys + lane;
      for (int i = 0; i < a.head_dim; ++i, keys += kKeyChunk) {
        F k[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) k[v] = S::Load(keys + v * kW);
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          const F value = S::Set1(q[size_t(r) * size_t(a.padded_dim) + size_t(i)]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[r][v] = S::Fma(value, k[v], acc[r][v]);
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) S::Store(scores[r] + lane + v * kW, acc[r][v]);
      }
    }
  }

  // Scores become weights 2^(score - highest); fills in the factors that older sums shrink by.
  template <int MR>
  LOOPSERVE_INLINE void Softmax(float (*scores)[kKeyChunk], const uint64_t* visible, float* lanes,
                                size_t stride, float* shrink) {
    constexpr int kParts = kKeyChunk / kW;
    alignas(64) float fall[16];  // how far the highest score of each row rises
    float shift[MR];
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      float* highest = lanes + size_t(r) * stride + kLanes;
      F top = S::Set1(*highest);
      if (visible[r] != ~uint64_t{0}) Hide(scores[r], visible[r]);
#pragma GCC unroll 16
      for (int i = 0; i < kParts; ++i) top = S::Max(top, S::Load(scores[r] + i * kW));
      const float new_highest = S::ReduceMax(top);
      shift[r] = new_highest == kNever ? 0.0f : new_highest;
      fall[r] = *highest - shift[r];
      *highest = new_highest;
    }
    for (int r = MR; r < 16; ++r) fall[r] = 0.0f;
    for (int r = 0; r < 8; r += kW) S::Store(fall + r, S::Exp2(S::Load(fall + r)));
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      shrink[r] = fall[r];
      const F shifts = S::Set1(shift[r]);
      F sum = S::Mul(S::Load(lanes + size_t(r) * stride), S::Set1(fall[r]));
#pragma GCC unroll 16
      for (int i = 0; i < kParts; ++i) {
        const F weight = S::Exp2(S::Sub(S::Load(scores[r] + i * kW), shifts));
        S::Store(scores[r] + i * kW, weight);
        sum = S::Add(sum, weight);
      }
      S::Store(lanes + size_t(r) * stride, sum);
    }
  }

  static void Hide(float* scores, uint64_t visible) {
    for (int i = 0; i < kKeyChunk; i += kW) {
      S::Store(scores + i, S::Select(S::Load(scores + i), visible >> i));
    }
  }

  template <int MR, int NV>
  LOOPSERVE_INLINE void AddValue(const float* values, const float (*weights)[kKeyChunk], int j,
                                 F (&acc)[MR][NV]) {
    F value[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) value[v] = S::Load(values + v * kW);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const F weight = S::Set1(weights[r][j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = S::Fma(weight, value[v], acc[r][v]);
    }
  }

  // `keys` are those that any of the rows sees.
  template <int MR, int NV>
  LOOPSERVE_INLINE void WeightedSum(const ChunkStep& a, float* state, int dim, uint64_t keys,
                                    const float (*weights)[kKeyChunk], const float* shrink) {
    const size_t stride = size_t(StateStride(a.padded_dim));
    float* sum = state + dim;
    F acc[MR][NV];
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const F factor = S::Set1(shrink[r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        acc[r][v] = S::Mul(S::Load(sum + size_t(r) * stride + v * kW), factor);
      }
    }
    const float* values = a.values + dim;
    const int count = KeysOf(keys);
    for (int j = 0; j < count; ++j, values += a.padded_dim) {
      AddValue<MR, NV>(values, weights, j, acc);
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) S::Store(sum + size_t(r) * stride + v * kW, acc[r][v]);
    }
  }

  // As Scores, with each block of kW keys by 2 kW dimensions transposed in registers. Blocks of
  // different keys follow one another, so that their sums do not wait for each other.
  template <int MR>
  LOOPSERVE_INLINE void StreamScores(const ChunkStep& a, const ChunkSource& from,
                                     float (*scores)[kKeyChunk]) {
    for (int i = 0; i < a.head_dim; i += 2 * kW) {
      for (int j = 0; j < kKeyChunk; j += kW) {
        typename S::Words words[kW];
        S::TransposeWords(from.at + j, i, words);
        F acc[MR];
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) acc[r] = i == 0 ? S::Set1(0.0f) : S::Load(scores[r] + j);
#pragma GCC unroll 16
        for (int w = 0; w < kW; ++w) {
          const float* q = a.q + i + 2 * w;
          const F even = S::EvenBf16(words[w]);
          const F odd = S::OddBf16(words[w]);
#pragma GCC unroll 6
          for (int r = 0; r < MR; ++r, q += a.padded_dim) {
            acc[r] = S::Fma(S::Set1(q[0]), even, acc[r]);
            acc[r] = S::Fma(S::Set1(q[1]), odd, acc[r]);
          }
        }
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) S::Store(scores[r] + j, acc[r]);
        if (from.next == nullptr || i % 32 != 0) continue;
#pragma GCC unroll 16
        for (int k = 0; k < kW; ++k) __builtin_prefetch(from.next[j + k] + i * 2);
      }
    }
  }

  template <int MR, int NV>
  LOOPSERVE_INLINE void StreamWeightedSum(const ChunkStep& a, const ChunkSource& from, int dim,
                                          uint64_t keys, const float (*weights)[kKeyChunk],
                                          const float* shrink) {
    const size_t stride = size_t(StateStride(a.padded_dim));
    float* sum = a.state + dim;
    F acc[MR][NV];
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const F factor = S::Set1(shrink[r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        acc[r][v] = S::Mul(S::Load(sum + size_t(r) * stride + v * kW), factor);
      }
    }
    const int count = KeysOf(keys);
    for (int j = 0; j < count; ++j) {
      const auto* at = reinterpret_cast<const uint16_t*>(from.at[j]) + dim;
      if (from.next != nullptr) {
#pragma GCC unroll 2
        for (int i = 0; i < NV * kW; i += 32) __builtin_prefetch(from.next[j] + (dim + i) * 2);
      }
      F value[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) value[v] = S::WidenBf16(at + v * kW);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        const F weight = S::Set1(weights[r][j]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = S::Fma(weight, value[v], acc[r][v]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) S::Store(sum + size_t(r) * stride + v * kW, acc[r][v]);
    }
  }

  template <int MR>
  [[gnu::noinline]] static void StreamRows(const ChunkStep& a, const ChunkSource& keys,
                                           const ChunkSource& values) {
    alignas(64) float scores[MR][kKeyChunk];
    float shrink[MR];
    const size_t stride = size_t(StateStride(a.padded_dim));
    uint64_t seen = 0;
    StreamScores<MR>(a, keys, scores);
    for (int r = 0; r < MR; ++r) seen |= a.visible[r];
    Softmax<MR>(scores, a.visible, a.state + a.padded_dim, stride, shrink);
    if (seen == 0) return;
    int dim = 0;
    for (; dim + kTileVectors * kW <= a.padded_dim; dim += kTileVectors * kW) {
      StreamWeightedSum<MR, kTileVectors>(a, values, dim, seen, scores, shrink);
    }
    for (; dim + kW <= a.padded_dim; dim += kW) {
      StreamWeightedSum<MR, 1>(a, values, dim, seen, scores, shrink);
    }
  }

  static void Stream(const ChunkStep& a, const ChunkSource& keys, const ChunkSource& values) {
    ForRows(a.rows, [&]<int MR>() { StreamRows<MR>(a, keys, values); });
  }

  template <int MR>
  [[gnu::noinline]] static void AttendRows(const ChunkStep& a, int row0) {
    uint64_t keys = 0;
    for (int r = 0; r < MR; ++r) keys |= a.visible[row0 + r];
    if (keys == 0) return;
    alignas(64) float scores[MR][kKeyChunk];
    float shrink[MR];
    const size_t stride = size_t(StateStride(a.padded_dim));
    float* state = a.state + size_t(row0) * stride;
    if (row0 + MR < a.rows) {
      PrefetchFloats(state + MR * stride, MR * stride);
      PrefetchFloats(a.q + size_t(row0 + MR) * size_t(a.padded_dim), size_t(MR * a.padded_dim));
    }
    Scores<MR>(a, row0, scores);
    Softmax<MR>(scores, a.visible + row0, state + a.padded_dim, stride, shrink);
    int dim = 0;
    for (; dim + kTileVectors * kW <= a.padded_dim; dim += kTileVectors * kW) {
      WeightedSum<MR, kTileVectors>(a, state, dim, keys, scores, shrink);
    }
    for (; dim + kW <= a.padded_dim; dim += kW) {
      WeightedSum<MR, 1>(a, state, dim, keys, scores, shrink);
    }
  }

  static void Attend(const ChunkStep& a) {
    int row = 0;
    for (; row + kTileRows <= a.rows; row += kTileRows) AttendRows<kTileRows>(a, row);
    ForRows(a.rows - row, [&]<int MR>() { AttendRows<MR>(a, row); });
  }

  template <KvDtype kDtype>
  LOOPSERVE_INLINE float Dot(const GatherStep& a, int j) {
    F acc = S::Set1(0.0f);
    int i = 0;
    for (; i + kW <= a.head_dim; i += kW) {
      acc = S::Fma(S::Load(a.q + i), LoadStored(a.keys[j], kDtype, i), acc);
    }
    float sum = S::ReduceAdd(acc);
    for (; i < a.head_dim; ++i) sum += a.q[i] * ValueAt(a.keys[j], kDtype, i);
    return sum;
  }

  template <KvDtype kDtype>
  [[gnu::noinline]] static void GatherKeys(const GatherStep& a) {
    alignas(64) float scores[1][kKeyChunk];
    for (int j = 0; j < a.count; ++j) {
      scores[0][j] = Dot<kDtype>(a, j);
      if constexpr (IsCodes(kDtype)) scores[0][j] *= a.key_scales[j];
    }
    for (int j = a.count; j < kKeyChunk; ++j) scores[0][j] = kNever;
    const uint64_t all = ~uint64_t{0};
    float shrink;
    Softmax<1>(scores, &all, a.state + a.padded_dim, 0, &shrink);
    if constexpr (IsCodes(kDtype)) {
      for (int j = 0; j < a.count; ++j) scores[0][j] *= a.value_scales[j];
    }
    int dim = 0;
    for (; dim + kTileVectors * kW <= a.head_dim; dim += kTileVectors * kW) {
      GatherSum<kDtype, kTileVectors>(a, dim, shrink, scores[0]);
    }
    for (; dim + kW <= a.head_dim; dim += kW) GatherSum<kDtype, 1>(a, dim, shrink, scores[0]);
    for (; dim < a.head_dim; ++dim) {
      float sum = a.state[dim] * shrink;
      for (int j = 0; j < a.count; ++j) sum += scores[0][j] * ValueAt(a.values[j], kDtype, dim);
      a.state[dim] = sum;
    }
  }

  template <KvDtype kDtype, int NV>
  LOOPSERVE_INLINE void GatherSum(const GatherStep& a, int dim, float shrink,
                                  const float* weights) {
    F acc[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[v] = S::Mul(S::Load(a.state + dim + v * kW), S::Set1(shrink));
    }
    for (int j = 0; j < a.count; ++j) {
      const F weight = S::Set1(weights[j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        acc[v] = S::Fma(weight, LoadStored(a.values[j], kDtype, dim + v * kW), acc[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) S::Store(a.state + dim + v * kW, acc[v]);
  }

  static void Gather(const GatherStep& a) {
    switch (a.dtype) {
      case KvDtype::kBf16:
        return GatherKeys<KvDtype::kBf16>(a);
      case KvDtype::kF32:
        return GatherKeys<KvDtype::kF32>(a);
      case KvDtype::kInt8:
        return GatherKeys<KvDtype::kInt8>(a);
      case KvDtype::kFp8:
        return GatherKeys<KvDtype::kFp8>(a);
    }
  }

  static void Merge(int rows, int padded_dim, const float* other, float* state) {
    const int stride = StateStride(padded_dim);
    for (int r = 0; r < rows; ++r, other += stride, state += stride) {
      const float theirs = other[padded_dim + kLanes];
      const float ours = state[padded_dim + kLanes];
      const float top = ours > theirs ? ours : theirs;
      const float shift = top == kNever ? 0.0f : top;
      const F a = S::Exp2(S::Set1(ours - shift));
      const F b = S::Exp2(S::Set1(theirs - shift));
      for (int i = 0; i < padded_dim + kLanes; i += kW) {
        S::Store(state + i, S::Fma(S::Load(other + i), b, S::Mul(S::Load(state + i), a)));
      }
      state[padded_dim + kLanes] = top;
    }
  }

  static void Finish(const float* state, int head_dim, int padded_dim, float* out) {
    F lanes = S::Set1(0.0f);
    for (int i = 0; i < kLanes; i += kW) lanes = S::Add(lanes, S::Load(state + padded_dim + i));
    const float total = S::ReduceAdd(lanes);
    const bool none = state[padded_dim + kLanes] == kNever;
    // Adding zero makes -0 into 0: which of the two a sum ends at may depend on unseen keys.
    for (int i = 0; i < head_dim; ++i) out[i] = none ? 0.0f : state[i] / total + 0.0f;
  }

  // A constant: reaching it executes nothing that was compiled for the instruction set.
  static constexpr ChunkKernels Table() {
    ChunkKernels table = {LoadQuery, LoadKeys, LoadValues, Attend, nullptr, Gather, Merge, Finish};
    if constexpr (S::kStreams) table.stream = Stream;
    return table;
  }
  static constexpr ChunkKernels kTable = Table();
};

}  // namespace loopserve::worker::cpu_attention
