// The arithmetic of sampling, one definition for hosts and devices.
//
// A token's weight, its probability beside the best one's, is a whole number. Sums of weights are
// exact whatever the order in which they are added, so a draw does not depend on how many threads
// look for it, and a device chooses the token that a host does. No product is fused with a sum (the
// host's sources that include this are compiled so), for the same reason.
//
// Scores have a total order: higher first, then lower ids. NaN counts as -infinity. Weights take
// +infinity as the largest finite number, so that differences are finite.
//
// Thread rule: pure functions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "worker/backend/host_device.h"
#include "worker/backend/sampling.h"

namespace loopserve::worker {

// The best token's weight. Sums of up to 2^24 tokens, the most that a vocabulary may have, fit.
inline constexpr int kWeightBits = 40;
inline constexpr uint64_t kFullWeight = uint64_t{1} << kWeightBits;
inline constexpr int64_t kMostSampledTokens = int64_t{1} << 24;
// exp of less is no part of a weight.
inline constexpr float kNoWeight = -28;
inline constexpr float kLog2OfE = 1.44269504F, kLogOf2 = 0.693147181F;
inline constexpr uint32_t kSignBit = uint32_t{1} << 31;

LOOPSERVE_HOST_DEVICE inline float Product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
LOOPSERVE_HOST_DEVICE inline float Sum(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
LOOPSERVE_HOST_DEVICE inline float Quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
template <class To, class From>
LOOPSERVE_HOST_DEVICE inline To BitsAs(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

LOOPSERVE_HOST_DEVICE inline float Adjusted(float logit, const TokenAdjustment& a) {
  const float biased = Sum(logit, a.bias);
  const float scaled = biased > 0 ? Quotient(biased, a.repetition) : Product(biased, a.repetition);
  return Sum(scaled, -a.penalty);
}

// The factors of the series of exp, 1 / i!, as many as |f| <= log(2) / 2 needs.
struct ExpSeries {
  static constexpr int kTerms = 7;
  float factors[kTerms] = {1, 1, 1.0F / 2, 1.0F / 6, 1.0F / 24, 1.0F / 120, 1.0F / 720};
};

// Ascends with the score; equal for equal scores, both zeros among them.
LOOPSERVE_HOST_DEVICE inline uint32_t OrderOf(float score) {
  const float number = score >= -HUGE_VALF ? score + 0.0F : -HUGE_VALF;
  const auto bits = BitsAs<uint32_t>(number);
  return (bits & kSignBit) != 0 ? ~bits : bits | kSignBit;
}
// The score of that order.
LOOPSERVE_HOST_DEVICE inline float ScoreOf(uint32_t order) {
  return BitsAs<float>((order & kSignBit) != 0 ? order & ~kSignBit : ~order);
}
// As weights and probabilities take it.
LOOPSERVE_HOST_DEVICE inline float FiniteOf(float score) {
  constexpr float kMost = std::numeric_limits<float>::max();
  return score > kMost ? kMost : score;
}

// exp((score - top) * inverse_temperature) * kFullWeight, rounded down; the exponential is right to
// 2e-6 of its value. `top` is finite and the best of the scores.
LOOPSERVE_HOST_DEVICE inline uint64_t WeightOf(float score, float top, float inverse_temperature) {
  const float x = Product(Sum(FiniteOf(score), -top), inverse_temperature);
  if (!(x > kNoWeight)) return 0;  // NaN neither
  // 2^n * exp(f)
  const float y = Product(x, kLog2OfE);
  const auto n = static_cast<int32_t>(Sum(y, -0.5F));
  const float f = Product(Sum(y, static_cast<float>(-n)), kLogOf2);
  constexpr ExpSeries kExp;
  float power = kExp.factors[ExpSeries::kTerms - 1];
  LOOPSERVE_UNROLL
  for (int i = ExpSeries::kTerms - 2; i >= 0; --i) {
    power = Sum(kExp.factors[i], Product(f, power));
  }
  const auto scale = BitsAs<float>(static_cast<uint32_t>(n + 127 + kWeightBits) << 23);
  return static_cast<uint64_t>(static_cast<int64_t>(Product(power, scale)));
}

// The part of `total` that `draw` means: uniform in [0, total).
LOOPSERVE_HOST_DEVICE inline uint64_t DrawnPart(uint64_t draw, uint64_t total) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(draw, total);
#else
  return static_cast<uint64_t>((static_cast<__uint128_t>(draw) * total) >> 64);
#endif
}
// The weight that a nucleus of top_p < 1 has to reach.
LOOPSERVE_HOST_DEVICE inline uint64_t NucleusWeight(float top_p, uint64_t total) {
  const auto wanted =
      static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
  return wanted > 0 ? wanted : 1;
}

}  // namespace loopserve::worker
