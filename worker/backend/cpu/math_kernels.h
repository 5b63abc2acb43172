// exp, norms and elementwise ops, for any instruction set; S as in matmul_kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cpu {

template <class S>
struct MathKernels {
  using F = typename S::F;
  static constexpr int kW = S::kWidth;

  // e^x within about 2e-7 of the value, x clamped to [-87.3, 88.3].
  static F Exp(F x) {
    x = S::Min(S::Max(x, S::Set1(-87.3f)), S::Set1(88.3f));
    const F n = S::Nearest(S::Mul(x, S::Set1(1.44269504f)));
    F r = S::Fma(n, S::Set1(-0.693359375f), x);
    r = S::Fma(n, S::Set1(2.12194440e-4f), r);
    F p = S::Set1(1.9875691500e-4f);
    p = S::Fma(p, r, S::Set1(1.3981999507e-3f));
    p = S::Fma(p, r, S::Set1(8.3334519073e-3f));
    p = S::Fma(p, r, S::Set1(4.1665795894e-2f));
    p = S::Fma(p, r, S::Set1(1.6666665459e-1f));
    p = S::Fma(p, r, S::Set1(5.0000001201e-1f));
    p = S::Fma(S::Mul(r, r), p, S::Add(r, S::Set1(1.0f)));
    return S::Mul(p, S::PowerOfTwo(n));
  }

  static void RmsNorm(const float* x, const float* weight, int64_t cols, float eps, float* out) {
    F sums[4] = {S::Set1(0.0f), S::Set1(0.0f), S::Set1(0.0f), S::Set1(0.0f)};
    int64_t i = 0;
    for (; i + 4 * kW <= cols; i += 4 * kW) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const F value = S::Load(x + i + v * kW);
        sums[v] = S::Fma(value, value, sums[v]);
      }
    }
    float rest = 0;
    for (; i < cols; ++i) rest += x[i] * x[i];
    const float sum =
        S::ReduceAdd(S::Add(S::Add(sums[0], sums[1]), S::Add(sums[2], sums[3]))) + rest;
    const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(cols) + eps);
    const F factor = S::Set1(scale);
    for (i = 0; i + kW <= cols; i += kW) {
      S::Store(out + i, S::Mul(S::Mul(S::Load(x + i), factor), S::Load(weight + i)));
    }
    for (; i < cols; ++i) out[i] = x[i] * scale * weight[i];
  }

  static void Add(float* to, const float* x, int64_t count) {
    int64_t i = 0;
    for (; i + kW <= count; i += kW) S::Store(to + i, S::Add(S::Load(to + i), S::Load(x + i)));
    for (; i < count; ++i) to[i] += x[i];
  }

  static F SiluTimes(F g, F u) {
    const F below = S::Add(Exp(S::Sub(S::Set1(0.0f), g)), S::Set1(1.0f));
    return S::Mul(S::Div(g, below), u);
  }

  static void SiluMul(float* gate, const float* up, int64_t count) {
    int64_t i = 0;
    for (; i + kW <= count; i += kW) {
      S::Store(gate + i, SiluTimes(S::Load(gate + i), S::Load(up + i)));
    }
    for (; i < count; ++i) gate[i] = S::First(SiluTimes(S::Set1(gate[i]), S::Set1(up[i])));
  }

  static uint16_t ScalarToBf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }

  static void ToBf16(const float* from, int64_t count, uint16_t* to) {
    int64_t i = 0;
    for (; i + kW <= count; i += kW) S::StoreBf16(to + i, S::Load(from + i));
    for (; i < count; ++i) to[i] = ScalarToBf16(from[i]);
  }

  static void Rope(float* x, int heads, int head_dim, const float* cos, const float* sin, int pairs,
                   bool interleaved) {
    for (int h = 0; h < heads; ++h, x += head_dim) {
      if (interleaved) {
        for (int i = 0; i < pairs; ++i) Rotate(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
      } else {
        float* second = x + pairs;
        for (int i = 0; i < pairs; ++i) Rotate(x[i], second[i], cos[i], sin[i]);
      }
    }
  }

  static void Rotate(float& a, float& b, float c, float s) {
    const float x = a;
    const float y = b;
    a = x * c - y * s;
    b = x * s + y * c;
  }
};

}  // namespace loopserve::worker::cpu
