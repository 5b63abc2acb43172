// Sampler: logits -> token.
//
// Everything that narrows or reweighs the choice is applied in a fixed order: logit_bias,
// repetition, presence and frequency penalties, then either greedy choice, or temperature, top-k,
// top-p, min-p and one draw. The draw comes from a counter-based generator of (seed, position), so
// an answer depends neither on what else is in the batch nor on how often it was interrupted.
//
// The vocabulary is never sorted: ScoreScan finds the few candidates that matter, and selection is
// by partition. NaN logits count as -infinity; if nothing finite is left the choice is the lowest
// id.
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
#include "worker/engine/score_scan.h"

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
inline constexpr uint32_t kMaxLogprobs = 20;
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
  Sampler(SamplingParams params, uint64_t seed, std::span<const common::TokenId> context);

  // Chooses the token at absolute position `position`. `banned` tokens cannot be chosen (the stop
  // tokens, while min_tokens has not been reached). `logits` [vocab] is left as it is.
  SampledToken Sample(std::span<const float> logits, uint64_t position,
                      std::span<const common::TokenId> banned = {});
  // Tells what was chosen, so that the penalties of later tokens see it.
  void Accept(common::TokenId token);

 private:
  struct Seen {
    bool in_context = false;
    uint32_t generated = 0;
  };
  bool Adjusts() const;
  void Adjust(std::span<const float> logits, std::span<const common::TokenId> banned);
  common::TokenId Draw(std::span<const float> scores, uint64_t position);
  void FillLogprobs(std::span<const float> scores, uint32_t alternatives, SampledToken& out);

  const SamplingParams params_;
  const uint64_t seed_;
  absl::flat_hash_map<common::TokenId, Seen> seen_;
  ScoreScan scan_;
  std::vector<float> scores_;                // scratch: adjusted logits
  std::vector<common::TokenId> candidates_;  // scratch
};

// Uniform in [0, 1): a pure function of its arguments.
double UniformAt(uint64_t seed, uint64_t position);

}  // namespace loopserve::worker
