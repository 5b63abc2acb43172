#include "worker/engine/speculation.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr int64_t kAutoRows = 8;
constexpr double kMemory = 0.875;
// A prediction is not exact: what promises less than this is not tried.
constexpr double kLeastGain = 1.03;

}  // namespace

absl::StatusOr<SpeculationOptions> SpeculationOptions::Parse(absl::string_view text) {
  if (text == "off") return SpeculationOptions{.max_rows = 0};
  if (text == "auto") return SpeculationOptions{.max_rows = kAutoRows};
  int64_t rows = 0;
  if (absl::SimpleAtoi(text, &rows) && rows >= 1 && rows <= kMaxDraftRows) {
    return SpeculationOptions{.max_rows = rows, .adaptive = false};
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", text, "\" is neither auto nor off nor a number of tokens up to ", kMaxDraftRows));
}

size_t GuessRate::IndexOf(size_t match) {
  return std::clamp(match, NgramDraft::kShortest, NgramDraft::kLongest) - NgramDraft::kShortest;
}

void GuessRate::Observe(size_t match, size_t right, bool all) {
  double& rate = rates_[IndexOf(match)];
  for (size_t i = 0; i < right; ++i) rate = kMemory * rate + (1 - kMemory);
  if (!all) rate *= kMemory;
}

void Guesser::Guess(std::span<const TokenId> text, size_t most) {
  draft_.Extend(text);
  match_ = draft_.Propose(text, most, guess_);
}

void Guesser::Judge(std::span<const TokenId> text, size_t more) {
  if (match_ == 0) return;
  const auto came = text.last(more).first(std::min(more, guess_.size()));
  const size_t right = static_cast<size_t>(std::ranges::mismatch(came, guess_).in1 - came.begin());
  rate_.Observe(match_, right, right == came.size());
}

int64_t BestDraftRows(const StepCost& cost, int64_t kv_tokens, double rate, int64_t most,
                      StepShape& step, double& tokens) {
  const double alone = absl::ToDoubleSeconds(cost.Predict(step));
  if (alone == 0) {
    step.Add(kv_tokens, most);
    return most;
  }
  double best_speed = kLeastGain * tokens / alone;
  double best_gain = 0, gain = 0, chance = 1;
  int64_t best = 0;
  for (int64_t rows = 1; rows <= most; ++rows) {
    chance *= rate;
    gain += chance;
    StepShape with = step;
    with.Add(kv_tokens, rows);
    const double speed = (tokens + gain) / absl::ToDoubleSeconds(cost.Predict(with));
    if (speed <= best_speed) continue;
    best_speed = speed;
    best_gain = gain;
    best = rows;
  }
  step.Add(kv_tokens, best);
  tokens += best_gain;
  return best;
}

}  // namespace loopserve::worker
