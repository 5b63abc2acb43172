#include "worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr size_t kUsualNucleus = 200;
constexpr float kNever = -std::numeric_limits<float>::infinity();

// The order of candidates needs a total order: NaN last, +inf finite so that differences are.
float Clean(float logit) {
  if (std::isnan(logit)) return kNever;
  return std::min(logit, std::numeric_limits<float>::max());
}

// Descending by score, ties by ascending id.
struct Better {
  std::span<const float> scores;
  bool operator()(TokenId a, TokenId b) const {
    const float sa = Clean(scores[static_cast<size_t>(a)]);
    const float sb = Clean(scores[static_cast<size_t>(b)]);
    return sa != sb ? sa > sb : a < b;
  }
};

using Candidates = std::vector<TokenId>;

// Keeps the `count` best, in no order.
void KeepBest(Candidates& candidates, size_t count, const Better& better) {
  if (count >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(count),
                   candidates.end(), better);
  candidates.resize(count);
}

// Keeps the smallest number of best candidates whose weights sum up to `wanted`. Halves the
// candidates until only a few have to be put in order.
template <typename Weight>
void KeepNucleus(Candidates& candidates, double wanted, const Better& better,
                 const Weight& weight) {
  constexpr size_t kFew = 32;
  const auto at = [&](size_t i) { return candidates.begin() + static_cast<std::ptrdiff_t>(i); };
  size_t kept = 0, end = candidates.size();
  double covered = 0;
  while (end - kept > kFew) {
    const size_t middle = kept + (end - kept) / 2;
    std::nth_element(at(kept), at(middle), at(end), better);
    double half = 0;
    for (size_t i = kept; i < middle; ++i) half += weight(candidates[i]);
    if (covered + half < wanted) {
      covered += half;
      kept = middle;
    } else {
      end = middle;
    }
  }
  std::sort(at(kept), at(end), better);
  for (; kept < end && covered < wanted; ++kept) covered += weight(candidates[kept]);
  candidates.resize(std::max<size_t>(kept, 1));
}

absl::Status CheckRange(absl::string_view name, float value, float low, float high,
                        bool low_included) {
  const bool above = low_included ? value >= low : value > low;
  if (above && value <= high) return absl::OkStatus();  // false for NaN
  return common::InvalidField(
      absl::StrCat("sampling.", name),
      absl::StrCat("must be in ", low_included ? "[" : "(", low, ", ", high, "], got ", value));
}

absl::Status CheckToken(absl::string_view name, TokenId token, int64_t vocab) {
  if (token >= 0 && token < vocab) return absl::OkStatus();
  return common::InvalidField(
      absl::StrCat("sampling.", name),
      absl::StrCat("token id ", token, " is outside the vocabulary of ", vocab));
}

absl::Status CheckLists(const SamplingParams& params, int64_t vocab) {
  for (const auto& [token, bias] : params.logit_bias) {
    RETURN_IF_ERROR(CheckToken("logit_bias", token, vocab));
    RETURN_IF_ERROR(CheckRange("logit_bias", bias, -100, 100, true));
  }
  for (TokenId token : params.stop_token_ids) {
    RETURN_IF_ERROR(CheckToken("stop_token_ids", token, vocab));
  }
  if (params.stop.size() > kMaxStopStrings) {
    return common::InvalidField(
        "sampling.stop",
        absl::StrCat("at most ", kMaxStopStrings, " strings, got ", params.stop.size()));
  }
  for (const std::string& stop : params.stop) {
    if (stop.empty()) return common::InvalidField("sampling.stop", "a stop string is empty");
  }
  return absl::OkStatus();
}

uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

double UniformAt(uint64_t seed, uint64_t position) {
  const uint64_t bits = Mix(Mix(seed + 0x9e3779b97f4a7c15ULL) + position * 0x9e3779b97f4a7c15ULL);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

absl::Status ValidateSampling(const SamplingParams& params, int64_t vocab) {
  if (params.max_tokens == 0u) {
    return common::InvalidField("sampling.max_tokens", "must be at least 1, got 0");
  }
  RETURN_IF_ERROR(CheckRange("temperature", params.temperature, 0, 2, true));
  RETURN_IF_ERROR(CheckRange("top_p", params.top_p, 0, 1, false));
  RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0, 1, true));
  RETURN_IF_ERROR(CheckRange("repetition_penalty", params.repetition_penalty, 0, 2, false));
  RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty, -2, 2, true));
  RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty, -2, 2, true));
  RETURN_IF_ERROR(CheckLists(params, vocab));
  if (params.max_tokens && params.min_tokens > *params.max_tokens) {
    return common::InvalidField("sampling.min_tokens",
                                absl::StrCat("must be at most max_tokens (", *params.max_tokens,
                                             "), got ", params.min_tokens));
  }
  if (params.logprobs.value_or(0) > kMaxLogprobs) {
    return common::InvalidField("sampling.logprobs", absl::StrCat("must be at most ", kMaxLogprobs,
                                                                  ", got ", *params.logprobs));
  }
  return absl::OkStatus();
}

Sampler::Sampler(SamplingParams params, uint64_t seed, std::span<const TokenId> context)
    : params_(std::move(params)), seed_(seed) {
  if (params_.repetition_penalty == 1) return;
  for (TokenId token : context) seen_[token].in_context = true;
}

bool Sampler::Adjusts() const {
  return !params_.logit_bias.empty() || params_.repetition_penalty != 1 ||
         params_.presence_penalty != 0 || params_.frequency_penalty != 0;
}

void Sampler::Adjust(std::span<const float> logits, std::span<const TokenId> banned) {
  scores_.assign(logits.begin(), logits.end());
  for (const auto& [token, bias] : params_.logit_bias) scores_[static_cast<size_t>(token)] += bias;
  for (const auto& [token, seen] : seen_) {
    float& score = scores_[static_cast<size_t>(token)];
    score = score > 0 ? score / params_.repetition_penalty : score * params_.repetition_penalty;
    if (seen.generated == 0) continue;
    score -= params_.presence_penalty;
    score -= params_.frequency_penalty * static_cast<float>(seen.generated);
  }
  for (TokenId token : banned) scores_[static_cast<size_t>(token)] = kNever;
}

TokenId Sampler::Draw(std::span<const float> scores, uint64_t position) {
  const TokenId best = scan_.best();
  const float top = scan_.top();
  if (top == kNever) return best;
  const bool narrows = params_.top_k > 0 && params_.top_k < scores.size();
  if (!narrows && params_.top_p == 1 && params_.min_p == 0) {
    scan_.TotalWeight(params_.temperature);
    return scan_.Draw(UniformAt(seed_, position));
  }
  const auto weight = [&](TokenId token) {
    return std::exp((static_cast<double>(Clean(scores[static_cast<size_t>(token)])) - top) /
                    params_.temperature);
  };
  const auto sum = [&] {
    double total = 0;
    for (const TokenId token : candidates_) total += weight(token);
    return total;
  };
  const Better better{scores};
  if (narrows) {
    scan_.Gather(params_.top_k, candidates_);
    KeepBest(candidates_, params_.top_k, better);
    if (params_.top_p < 1) KeepNucleus(candidates_, params_.top_p * sum(), better, weight);
  } else if (params_.top_p < 1) {
    // The nucleus is usually tiny.
    const double wanted = params_.top_p * scan_.TotalWeight(params_.temperature);
    scan_.Gather(kUsualNucleus, candidates_);
    if (candidates_.size() < scores.size() && sum() < wanted) {
      scan_.Gather(scores.size(), candidates_);
    }
    KeepNucleus(candidates_, wanted, better, weight);
  } else {
    // A little more than min_p leaves.
    const double least = top + params_.temperature * (std::log(params_.min_p) - 0.001);
    scan_.GatherFrom(static_cast<float>(least), candidates_);
  }
  if (params_.min_p > 0) {
    std::erase_if(candidates_, [&](TokenId token) { return weight(token) < params_.min_p; });
  }
  // The order of addition is fixed by the candidates' order, so the draw is reproducible.
  double left = UniformAt(seed_, position) * sum();
  for (const TokenId token : candidates_) {
    left -= weight(token);
    if (left < 0) return token;
  }
  return best;  // rounding ate the last share
}

void Sampler::FillLogprobs(std::span<const float> scores, uint32_t alternatives,
                           SampledToken& out) {
  const double total = scan_.TotalWeight(1);
  const double log_total = total > 0 ? std::log(total) + scan_.top() : 0;
  const auto logprob = [&](TokenId token) {
    return static_cast<float>(Clean(scores[static_cast<size_t>(token)]) - log_total);
  };
  out.logprob = logprob(out.token);
  if (alternatives == 0) return;
  const Better better{scores};
  scan_.Gather(alternatives, candidates_);
  KeepBest(candidates_, alternatives, better);
  std::sort(candidates_.begin(), candidates_.end(), better);
  for (const TokenId token : candidates_) out.top.push_back({token, logprob(token)});
}

SampledToken Sampler::Sample(std::span<const float> logits, uint64_t position,
                             std::span<const TokenId> banned) {
  std::span<const float> scores = logits;
  if (Adjusts() || !banned.empty()) {
    Adjust(logits, banned);
    scores = scores_;
  }
  scan_.Read(scores);
  SampledToken out;
  out.token = params_.temperature > 0 ? Draw(scores, position) : scan_.best();
  if (params_.logprobs) FillLogprobs(scores, *params_.logprobs, out);
  return out;
}

void Sampler::Accept(TokenId token) {
  if (Adjusts()) ++seen_[token].generated;
}

}  // namespace loopserve::worker
