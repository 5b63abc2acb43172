// What sampling needs to know of a row of logits, and what comes of it: plain numbers, the same for
// hosts and devices.
//
// A row's scores are its logits with the adjustments that its request wants (biases, penalties,
// tokens that are banned). They are narrowed by top_k, top_p and min_p, in this order, and one
// token is drawn, or the best one taken. How, bit by bit, is in sampling_math.h: every backend
// chooses the same token for the same logits.
//
// Thread rule: values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "common/ids.h"

namespace loopserve::worker {

inline constexpr uint32_t kMaxLogprobs = 20;

// What is done to the logit of one token; a row has at most one for each.
struct TokenAdjustment {
  common::TokenId token = 0;
  float bias = 0;        // added first; -infinity bans the token
  float repetition = 1;  // then a positive score is divided by it, any other multiplied
  float penalty = 0;     // subtracted at last
};

// How the token of one row is chosen.
struct RowSampling {
  static constexpr int32_t kNoLogprobs = -1;

  uint64_t draw = 0;               // uniform over all values: which part of the weights is meant
  uint64_t least_weight = 0;       // what weighs less is dropped (min_p); 0: nothing is
  float inverse_temperature = 0;   // 0: greedy
  float top_p = 1;                 // in (0, 1]; 1: all
  uint32_t top_k = 0;              // 0: all
  int32_t logprobs = kNoLogprobs;  // or of how many alternatives, up to kMaxLogprobs
  uint32_t first_adjustment = 0;
  uint32_t adjustments = 0;

  bool operator==(const RowSampling&) const = default;
};

// The rows of a step. Each has its own run of the adjustments.
struct SamplingView {
  std::span<const RowSampling> rows;
  std::span<const TokenAdjustment> adjustments;

  bool empty() const { return rows.empty(); }
  std::span<const TokenAdjustment> AdjustmentsOf(const RowSampling& row) const {
    return adjustments.subspan(row.first_adjustment, row.adjustments);
  }
};

// Owner of the same.
struct SamplingPlan {
  std::vector<RowSampling> rows;
  std::vector<TokenAdjustment> adjustments;

  SamplingView view() const { return {rows, adjustments}; }
  void Clear() {
    rows.clear();
    adjustments.clear();
  }
};

// The choice of one row.
struct RowChoice {
  common::TokenId token = 0;
  // With logprobs: what log probabilities follow from.
  float score = 0;            // the token's
  float top = 0;              // the best score; -infinity when nothing is finite
  uint32_t alternatives = 0;  // how many there are
  uint64_t total_weight = 0;  // of all tokens, at temperature 1
  // The best tokens and their scores, the best first, equal ones in order of id.
  common::TokenId best[kMaxLogprobs] = {};
  float best_scores[kMaxLogprobs] = {};
};

// They are copied to and from devices as they are.
static_assert(std::is_trivially_copyable_v<TokenAdjustment> && sizeof(TokenAdjustment) == 16);
static_assert(std::is_trivially_copyable_v<RowSampling> && sizeof(RowSampling) == 40);
static_assert(std::is_trivially_copyable_v<RowChoice>);

}  // namespace loopserve::worker
