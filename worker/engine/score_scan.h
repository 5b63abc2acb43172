// ScoreScan: what sampling asks of the scores of a vocabulary, in few passes and without sorting.
//
// Read takes the maximum of every block of scores. The best token, and a set of tokens that holds
// the n best, are then found from the maxima and the few blocks that matter. NaN counts as
// -infinity, +infinity as the largest finite number.
//
// Thread rule: one thread; the scores must stay until the last question about them.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "common/ids.h"

namespace loopserve::worker {

class ScoreScan final {
 public:
  void Read(std::span<const float> scores);

  // The lowest id among the best; 0 when nothing is finite.
  common::TokenId best() const { return best_; }
  // Its score; -infinity when nothing is finite.
  float top() const { return top_; }
  // Replaces `out` by a set, in order of ids, that holds the `count` best tokens and usually few
  // others; by all tokens if count is large.
  void Gather(size_t count, std::vector<common::TokenId>& out);
  // The same of all tokens whose score is at least `least`; of all tokens for -infinity.
  void GatherFrom(float least, std::vector<common::TokenId>& out) const;

  // Sum over all tokens of exp((score - top) / temperature), to float precision; 0 when nothing is
  // finite.
  double TotalWeight(double temperature);
  // The token at which the sum of the weights, in order of ids, passes `share` of the total that
  // TotalWeight has just found. `share` is in [0, 1).
  common::TokenId Draw(double share) const;

 private:
  static constexpr size_t kBlock = 64;

  void WeighBlock(size_t block, std::span<float, kBlock> weights) const;

  std::span<const float> scores_;
  common::TokenId best_ = 0;
  float top_ = 0;
  float inverse_temperature_ = 1;
  double total_ = 0;
  std::vector<float> maxima_;
  std::vector<float> scratch_;
  std::vector<double> weights_;  // of the blocks
};

}  // namespace loopserve::worker
