// Sampler: how one sequence's tokens are chosen.
//
// Everything that narrows or reweighs the choice is applied in a fixed order: logit_bias,
// repetition, presence and frequency penalties, then either greedy choice, or temperature, top-k,
// top-p, min-p and one draw. The draw comes from a counter-based generator of (seed, position), so
// an answer depends neither on what else is in the batch nor on how often it was interrupted.
//
// The sampler says so in numbers, as part of a step's plan; the backend that has the logits chooses
// (Backend::Sample), and only its choice comes back. NaN logits count as -infinity; if nothing
// finite is left the choice is the lowest id.
//
// Thread rule: a Sampler belongs to one sequence and one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/ids.h"
#include "worker/backend/sampling.h"

namespace loopserve::worker {

// Field by field types.v1.SamplingParams with the defaults filled in. `max_tokens` stays open
// because its default depends on the prompt's length.
struct SamplingParams {
  std::optional<uint32_t> max_tokens;  // unset: 512, at most what the context leaves
  float temperature = 0;               // 0: greedy
  float top_p = 1;
  uint32_t top_k = 0;  // 0: all
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::optional<uint64_t> seed;  // unset: the engine draws one per turn
  std::vector<std::pair<common::TokenId, float>> logit_bias;
  std::vector<std::string> stop;  // matched on text, by the TokenSink; here only for validation
  std::vector<common::TokenId> stop_token_ids;
  bool ignore_eos = false;
  uint32_t min_tokens = 0;
  std::optional<uint32_t> logprobs;  // set: the chosen token's; n > 0: and n alternatives
};

inline constexpr uint32_t kDefaultMaxTokens = 512;
inline constexpr size_t kMaxStopStrings = 16;

// InvalidField("sampling.<name>") for a value out of the range that types.proto documents, NaN
// included, and for token ids outside a vocabulary of `vocab`.
absl::Status ValidateSampling(const SamplingParams& params, int64_t vocab);

struct TokenLogprob {
  common::TokenId token = 0;
  float logprob = 0;
};

struct SampledToken {
  common::TokenId token = 0;
  // Of the distribution before temperature and truncation, after bias and penalties.
  float logprob = 0;
  std::vector<TokenLogprob> top;  // descending; equal values in order of id
};

class Sampler final {
 public:
  // `context` are the tokens before the first generated one, which the repetition penalty counts.
  Sampler(const SamplingParams& params, uint64_t seed, std::span<const common::TokenId> context);

  // Adds to `plan` how the token at absolute position `position` is to be chosen where `guessed`
  // have been accepted first. `banned` tokens cannot be chosen (the stop tokens, while min_tokens
  // has not been reached).
  void Plan(uint64_t position, std::span<const common::TokenId> guessed,
            std::span<const common::TokenId> banned, SamplingPlan& plan) const;
  // What a choice so planned says.
  SampledToken Read(const RowChoice& choice) const;
  // Tells what was chosen, so that the penalties of later tokens see it.
  void Accept(common::TokenId token);

 private:
  class Row;  // of a plan, in the making

  bool Penalises() const;
  // The penalty for having generated a token so often.
  float PenaltyFor(uint32_t times) const;
  // The index of the token's adjustment, made if there was none.
  size_t IndexOf(common::TokenId token);

  const uint64_t seed_;
  RowSampling row_;  // but for the draw and the adjustments
  float repetition_penalty_, presence_penalty_, frequency_penalty_;
  // One for each token that has a bias or a penalty, and how often that was generated.
  std::vector<TokenAdjustment> adjustments_;
  std::vector<uint32_t> generated_;
  absl::flat_hash_map<common::TokenId, size_t> index_;  // of both
};

// Uniform over all values: a pure function of its arguments.
uint64_t DrawAt(uint64_t seed, uint64_t position);

}  // namespace loopserve::worker
