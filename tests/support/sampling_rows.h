// Rows of logits and ways to choose from them, for everything that samples.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/backend/sampling.h"
#include "worker/backend/sampling_math.h"

namespace loopserve::testing {

// Of a few kinds: spread as logits are, all equal, many equal ones, with NaN and infinities,
// nothing finite.
inline std::vector<float> SampledLogits(size_t vocab, uint32_t seed) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  switch (seed % 6) {
    case 1:
      logits.assign(vocab, -2.5F);
      break;
    case 2:
      for (float& logit : logits) logit = static_cast<float>(static_cast<int>(logit));
      break;
    case 3:
      for (size_t i = 0; i < vocab; i += 5) {
        const float odd[] = {std::numeric_limits<float>::quiet_NaN(), -kInf, 0.0F, -0.0F};
        logits[i] = odd[random() % 4];
      }
      if (seed % 12 == 3) logits[random() % vocab] = kInf;
      break;
    case 4:
      if (seed % 12 == 4) logits.assign(vocab, -kInf);
      break;
    default:
      break;
  }
  return logits;
}

// A choice in every way that requests may ask for, by turns.
inline worker::RowSampling AnySampling(uint32_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&random](const auto&... options) {
    const std::common_type_t<decltype(options)...> all[] = {options...};
    return all[random() % sizeof...(options)];
  };
  worker::RowSampling how;
  how.draw = random();
  how.inverse_temperature =
      pick(0.0F, 1.0F, 0.5F, 1.0F / 0.7F, 30.0F, std::numeric_limits<float>::max());
  how.top_k = pick(0u, 0u, 1u, 2u, 40u, 1000u, 100000u);
  how.top_p = pick(1.0F, 1.0F, 0.95F, 0.5F, 0.999999F, 1e-6F);
  how.least_weight =
      pick(uint64_t{0}, uint64_t{0}, uint64_t{1}, worker::kFullWeight / 20, worker::kFullWeight);
  how.logprobs = pick(-1, 0, 1, 5, 20);
  return how;
}

inline std::string WordsOf(const worker::RowSampling& how) {
  return absl::StrCat("inverse temperature ", how.inverse_temperature, ", top_k ", how.top_k,
                      ", top_p ", how.top_p, ", least weight ", how.least_weight, ", logprobs ",
                      how.logprobs);
}

// The bits that differ between two choices, in words; empty if none that count.
inline std::string Difference(const worker::RowSampling& how, const worker::RowChoice& a,
                              const worker::RowChoice& b) {
  if (a.token != b.token) return absl::StrCat("token ", a.token, " against ", b.token);
  if (how.logprobs < 0) return "";
  if (worker::OrderOf(a.score) != worker::OrderOf(b.score)) {
    return absl::StrCat("score ", a.score, " against ", b.score);
  }
  if (a.top != b.top) return absl::StrCat("top ", a.top, " against ", b.top);
  if (a.total_weight != b.total_weight) {
    return absl::StrCat("total ", a.total_weight, " against ", b.total_weight);
  }
  if (a.alternatives != b.alternatives) return "the number of alternatives";
  for (uint32_t i = 0; i < a.alternatives; ++i) {
    if (a.best[i] != b.best[i]) return absl::StrCat("alternative ", i);
    if (worker::OrderOf(a.best_scores[i]) != worker::OrderOf(b.best_scores[i])) {
      return absl::StrCat("score of alternative ", i);
    }
  }
  return "";
}

}  // namespace loopserve::testing
