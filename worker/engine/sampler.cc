#include "worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "worker/backend/sampling_math.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr float kBan = -std::numeric_limits<float>::infinity();

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

uint64_t DrawAt(uint64_t seed, uint64_t position) {
  return Mix(Mix(seed + 0x9e3779b97f4a7c15ULL) + position * 0x9e3779b97f4a7c15ULL);
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

Sampler::Sampler(const SamplingParams& params, uint64_t seed, std::span<const TokenId> context)
    : seed_(seed),
      repetition_penalty_(params.repetition_penalty),
      presence_penalty_(params.presence_penalty),
      frequency_penalty_(params.frequency_penalty) {
  if (params.temperature > 0) {
    constexpr double kMost = std::numeric_limits<float>::max();
    row_.inverse_temperature =
        static_cast<float>(std::min(1 / static_cast<double>(params.temperature), kMost));
  }
  row_.top_k = params.top_k;
  row_.top_p = params.top_p;
  row_.least_weight =
      static_cast<uint64_t>(static_cast<double>(params.min_p) * static_cast<double>(kFullWeight));
  if (params.logprobs) row_.logprobs = static_cast<int32_t>(*params.logprobs);
  for (const auto& [token, bias] : params.logit_bias) adjustments_[IndexOf(token)].bias += bias;
  if (repetition_penalty_ == 1) return;
  for (const TokenId token : context) adjustments_[IndexOf(token)].repetition = repetition_penalty_;
}

bool Sampler::Penalises() const {
  return repetition_penalty_ != 1 || presence_penalty_ != 0 || frequency_penalty_ != 0;
}

float Sampler::PenaltyFor(uint32_t times) const {
  return times == 0 ? 0 : presence_penalty_ + frequency_penalty_ * static_cast<float>(times);
}

size_t Sampler::IndexOf(TokenId token) {
  const auto [place, is_new] = index_.try_emplace(token, adjustments_.size());
  if (is_new) {
    adjustments_.push_back({.token = token});
    generated_.push_back(0);
  }
  return place->second;
}

void Sampler::Accept(TokenId token) {
  if (!Penalises()) return;
  const size_t at = IndexOf(token);
  adjustments_[at].repetition = repetition_penalty_;
  adjustments_[at].penalty = PenaltyFor(++generated_[at]);
}

// The sequence's adjustments, copied behind those of the plan, and a few of this row's own.
class Sampler::Row final {
 public:
  Row(const Sampler& sampler, std::vector<TokenAdjustment>& all)
      : sampler_(sampler), all_(all), first_(all.size()) {
    all.insert(all.end(), sampler.adjustments_.begin(), sampler.adjustments_.end());
  }

  TokenAdjustment& Of(TokenId token) {
    if (const auto known = sampler_.index_.find(token); known != sampler_.index_.end()) {
      return all_[first_ + known->second];
    }
    const auto own =
        all_.begin() + static_cast<std::ptrdiff_t>(first_ + sampler_.adjustments_.size());
    const auto found = std::find_if(
        own, all_.end(), [token](const TokenAdjustment& other) { return other.token == token; });
    if (found != all_.end()) return *found;
    return all_.emplace_back(TokenAdjustment{.token = token});
  }
  uint32_t first() const { return static_cast<uint32_t>(first_); }
  uint32_t size() const { return static_cast<uint32_t>(all_.size() - first_); }

 private:
  const Sampler& sampler_;
  std::vector<TokenAdjustment>& all_;
  const size_t first_;
};

void Sampler::Plan(uint64_t position, std::span<const TokenId> guessed,
                   std::span<const TokenId> banned, SamplingPlan& plan) const {
  Row row(*this, plan.adjustments);
  if (!Penalises()) guessed = {};
  for (const TokenId token : guessed) {
    const auto known = index_.find(token);
    const uint32_t before = known == index_.end() ? 0 : generated_[known->second];
    const auto times = static_cast<uint32_t>(std::ranges::count(guessed, token));
    TokenAdjustment& adjustment = row.Of(token);
    adjustment.repetition = repetition_penalty_;
    adjustment.penalty = PenaltyFor(before + times);
  }
  for (const TokenId token : banned) row.Of(token).bias = kBan;
  RowSampling& added = plan.rows.emplace_back(row_);
  added.draw = DrawAt(seed_, position);
  added.first_adjustment = row.first();
  added.adjustments = row.size();
}

SampledToken Sampler::Read(const RowChoice& choice) const {
  SampledToken out{.token = choice.token};
  if (row_.logprobs < 0) return out;
  const double share = static_cast<double>(choice.total_weight) / static_cast<double>(kFullWeight);
  const double log_total = share > 0 ? std::log(share) + choice.top : 0;
  const auto logprob = [log_total](float score) {
    return static_cast<float>(FiniteOf(std::isnan(score) ? kBan : score) - log_total);
  };
  out.logprob = logprob(choice.score);
  for (uint32_t i = 0; i < choice.alternatives; ++i) {
    out.top.push_back({choice.best[i], logprob(choice.best_scores[i])});
  }
  return out;
}

}  // namespace loopserve::worker
