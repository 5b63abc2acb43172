// ScoreScan: what sampling asks of the scores of a vocabulary, in few passes and without sorting.
//
// Read takes the maximum of every block of scores. The best token, and a set of tokens that holds
// the n best, are then found from the maxima and the few blocks that matter. NaN counts as
// -infinity. Weights are whole numbers (sampling_math.h), here computed four at a time.
//
// Thread rule: one thread; the scores must stay until the last question about them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"

namespace loopserve::worker {

class ScoreScan final {
 public:
  void Read(std::span<const float> scores);

  // The lowest id among the best; 0 when nothing is finite.
  common::TokenId best() const { return best_; }
  // Its score, as weights take it; -infinity when nothing is finite.
  float top() const { return top_; }
  // Replaces `out` by a set, in order of ids, that holds the `count` best tokens and usually few
  // others; by all tokens if count is large.
  void Gather(size_t count, std::vector<common::TokenId>& out);
  // The same of all tokens whose score is at least `least`; of all tokens for -infinity.
  void GatherFrom(float least, std::vector<common::TokenId>& out) const;

  // The sum of all tokens' weights; 0 when nothing is finite.
  uint64_t TotalWeight(float inverse_temperature);
  // The token at which the sum of the weights, in order of ids, passes `part`, which is less than
  // the total that TotalWeight has just found.
  common::TokenId Draw(uint64_t part) const;

 private:
  static constexpr size_t kBlock = 64;

  void WeighBlock(size_t block, std::span<uint64_t, kBlock> weights) const;

  std::span<const float> scores_;
  common::TokenId best_ = 0;
  float top_ = 0;
  float inverse_temperature_ = 1;
  std::vector<float> maxima_;
  std::vector<float> scratch_;
  std::vector<uint64_t> weights_;  // of the blocks
};

}  // namespace loopserve::worker
