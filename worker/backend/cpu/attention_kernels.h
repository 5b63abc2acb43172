// Online softmax over one chunk of keys, for any instruction set; S as in matmul_kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/math_kernels.h"

namespace loopserve::worker::cpu {

template <class S>
struct AttentionKernels {
  using F = typename S::F;
  static constexpr int kW = S::kWidth;
  static constexpr int kNv = S::kHeadVectors;  // vectors of keys or dims per register tile
  using Math = MathKernels<S>;

  static void LoadValues(const std::byte* const* at, int count, bool bf16, int head_dim,
                         int padded_dim, float* values) {
    for (int j = 0; j < count; ++j) {
      float* to = values + size_t(j) * size_t(padded_dim);
      int i = 0;
      for (; i + kW <= head_dim; i += kW) {
        S::Store(to + i, bf16 ? S::LoadBf16(reinterpret_cast<const uint16_t*>(at[j]) + i)
                              : S::Load(reinterpret_cast<const float*>(at[j]) + i));
      }
      for (; i < padded_dim; ++i) to[i] = i < head_dim ? ScalarAt(at[j], bf16, i) : 0.0f;
    }
  }

  static float ScalarAt(const std::byte* at, bool bf16, int i) {
    if (!bf16) {
      float value;
      __builtin_memcpy(&value, at + size_t(i) * 4, 4);
      return value;
    }
    uint16_t half;
    __builtin_memcpy(&half, at + size_t(i) * 2, 2);
    const uint32_t wide = uint32_t{half} << 16;
    float value;
    __builtin_memcpy(&value, &wide, 4);
    return value;
  }

  // Transposes: keys[i][j] = value i of key j; keys beyond count are zero.
  static void LoadKeys(const std::byte* const* at, int count, bool bf16, int head_dim,
                       float* keys) {
    for (int first = 0; first < kKeyChunk; first += kW) {
      int i = 0;
      if (bf16 && first + kW <= count) {
        for (; i + 2 * kW <= head_dim; i += 2 * kW) {
          S::TransposeBf16(at + first, i, keys + size_t(i) * kKeyChunk + first, kKeyChunk);
        }
      }
      for (; i < head_dim; ++i) {
        float* to = keys + size_t(i) * kKeyChunk + first;
        for (int j = 0; j < kW; ++j) {
          to[j] = first + j < count ? ScalarAt(at[first + j], bf16, i) : 0.0f;
        }
      }
    }
  }

  template <int MR>
  static void Scores(const AttentionStep& a, int row0, float (*scores)[kKeyChunk]) {
    const float* q = a.q + size_t(row0) * size_t(a.padded_dim);
    for (int lane = 0; lane < kKeyChunk; lane += kW * kNv) {
      F acc[MR][kNv];
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) acc[r][v] = S::Set1(0.0f);
      }
      for (int i = 0; i < a.head_dim; ++i) {
        const float* keys = a.keys + size_t(i) * kKeyChunk + lane;
        F k[kNv];
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) k[v] = S::Load(keys + v * kW);
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          const F value = S::Set1(q[size_t(r) * size_t(a.padded_dim) + size_t(i)]);
#pragma GCC unroll 4
          for (int v = 0; v < kNv; ++v) acc[r][v] = S::Fma(k[v], value, acc[r][v]);
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) S::Store(scores[r] + lane + v * kW, acc[r][v]);
      }
    }
  }

  // Scores become weights exp(score - highest); returns the factor that older sums shrink by.
  static float Softmax(float* scores, int visible, float& highest, float& total) {
    constexpr float kNever = -__builtin_inff();
    for (int j = visible; j < kKeyChunk; ++j) scores[j] = kNever;
    constexpr int kParts = kKeyChunk / kW;
    F part[kParts];
    F top = S::Set1(highest);
#pragma GCC unroll 16
    for (int i = 0; i < kParts; ++i) {
      part[i] = S::Load(scores + i * kW);
      top = S::Max(top, part[i]);
    }
    const float new_highest = S::ReduceMax(top);
    const F shift = S::Set1(new_highest);
    F sum = S::Set1(0.0f);
#pragma GCC unroll 16
    for (int i = 0; i < kParts; ++i) {
      const F weight = Math::ExpOrZero(S::Sub(part[i], shift));
      S::Store(scores + i * kW, weight);
      sum = S::Add(sum, weight);
    }
    const float shrink = Math::ExpOrZeroScalar(highest - new_highest);
    highest = new_highest;
    total = total * shrink + S::ReduceAdd(sum);
    return shrink;
  }

  template <int MR, int NV>
  static void WeightedSum(const AttentionStep& a, int row0, int dim, int keys,
                          const float (*weights)[kKeyChunk], const float* shrink) {
    float* sum = a.sum + size_t(row0) * size_t(a.padded_dim) + dim;
    F acc[MR][NV];
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const F factor = S::Set1(shrink[r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        acc[r][v] = S::Mul(S::Load(sum + size_t(r) * size_t(a.padded_dim) + v * kW), factor);
      }
    }
    for (int j = 0; j < keys; ++j) {
      const float* values = a.values + size_t(j) * size_t(a.padded_dim) + dim;
      F value[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) value[v] = S::Load(values + v * kW);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        const F weight = S::Set1(weights[r][j]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = S::Fma(value[v], weight, acc[r][v]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        S::Store(sum + size_t(r) * size_t(a.padded_dim) + v * kW, acc[r][v]);
      }
    }
  }

  template <int MR>
  static void AttendRows(const AttentionStep& a, int row0) {
    alignas(64) float scores[MR][kKeyChunk];
    float shrink[MR];
    int keys = 0;
    Scores<MR>(a, row0, scores);
    for (int r = 0; r < MR; ++r) {
      const int visible = a.visible[row0 + r];
      keys = visible > keys ? visible : keys;
      shrink[r] = Softmax(scores[r], visible, a.highest[row0 + r], a.total[row0 + r]);
    }
    int dim = 0;
    for (; dim + kNv * kW <= a.padded_dim; dim += kNv * kW) {
      WeightedSum<MR, kNv>(a, row0, dim, keys, scores, shrink);
    }
    for (; dim + kW <= a.padded_dim; dim += kW) {
      WeightedSum<MR, 1>(a, row0, dim, keys, scores, shrink);
    }
  }

  static void Attend(const AttentionStep& a) {
    int row = 0;
    for (; row + 6 <= a.rows; row += 6) AttendRows<6>(a, row);
    switch (a.rows - row) {
      case 5:
        return AttendRows<5>(a, row);
      case 4:
        return AttendRows<4>(a, row);
      case 3:
        return AttendRows<3>(a, row);
      case 2:
        return AttendRows<2>(a, row);
      case 1:
        return AttendRows<1>(a, row);
      default:
        return;
    }
  }

  static void Merge(int padded_dim, float* highest, float* total, float* sum, float other_highest,
                    float other_total, const float* other_sum) {
    const float top = *highest > other_highest ? *highest : other_highest;
    const float mine = Math::ExpOrZeroScalar(*highest - top);
    const float theirs = Math::ExpOrZeroScalar(other_highest - top);
    *highest = top;
    *total = *total * mine + other_total * theirs;
    const F a = S::Set1(mine);
    const F b = S::Set1(theirs);
    for (int i = 0; i < padded_dim; i += kW) {
      S::Store(sum + i, S::Fma(S::Load(other_sum + i), b, S::Mul(S::Load(sum + i), a)));
    }
  }
};

}  // namespace loopserve::worker::cpu
