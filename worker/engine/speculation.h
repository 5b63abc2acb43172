// Speculation: when a guess of the next tokens is worth its rows.
//
// A guess is put into the step as further rows of its sequence, and every row's logits are sampled
// as if the tokens before it had been generated. As long as the choice is what was guessed, the
// next row's logits are those that the next step would have computed, bit for bit; the first that
// differs ends it, and the KV of the rows after it is overwritten later. So an answer has the same
// tokens with and without, sampled ones included: a draw depends on seed and position only.
//
// Guesses are judged for free: each one is compared with the tokens that come, whether its rows
// were computed or not.
//
// Thread rule: one thread; BestDraftRows is pure.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "worker/engine/ngram_draft.h"
#include "worker/engine/step_cost.h"

namespace loopserve::worker {

struct SpeculationOptions {
  // Rows of guesses for one sequence in one step; 0: none at all.
  int64_t max_rows = 0;
  bool adaptive = true;  // fewer than max_rows where that is faster

  // "auto", "off" or a number of rows; InvalidArgument for anything else.
  static absl::StatusOr<SpeculationOptions> Parse(absl::string_view text);
};
// Rows of guesses in one step, all sequences together: what the model's logits have room for beside
// max_batch.
inline constexpr int64_t kMaxDraftRows = 32;

// How often guesses are right, by the length of the match they come from.
class GuessRate final {
 public:
  double rate(size_t match) const { return rates_[IndexOf(match)]; }
  // Of a guess, `right` tokens came as guessed; then another came, or (`all`) nothing else is
  // known.
  void Observe(size_t match, size_t right, bool all);

 private:
  static size_t IndexOf(size_t match);
  std::array<double, NgramDraft::kLongest - NgramDraft::kShortest + 1> rates_ = {0.3, 0.4, 0.5};
};

// One sequence's guesses.
class Guesser final {
 public:
  explicit Guesser(size_t max_tokens) : draft_(max_tokens) {}

  // Guesses what follows `text`.
  void Guess(std::span<const common::TokenId> text, size_t most);
  std::span<const common::TokenId> guess() const { return guess_; }
  // The chance that the next token of the guess is right.
  double rate() const { return match_ == 0 ? 0 : rate_.rate(match_); }
  // `text` has grown by `more` tokens since the guess.
  void Judge(std::span<const common::TokenId> text, size_t more);

 private:
  NgramDraft draft_;
  GuessRate rate_;
  size_t match_ = 0;
  std::vector<common::TokenId> guess_;
};

// How many rows of a guess let tokens come fastest, all sequences together. `step` is the step
// without them, expected to give `tokens` tokens; `kv_tokens` precede the guess, each token of
// which is right with chance `rate`. Adds what is chosen to both.
int64_t BestDraftRows(const StepCost& cost, int64_t kv_tokens, double rate, int64_t most,
                      StepShape& step, double& tokens);

}  // namespace loopserve::worker
