// The second half of byte-level BPE: inside one word, the pair with the lowest rank is merged,
// leftmost first, until no pair is known. A queue ordered by (rank, place) keeps this at
// O(n log n) for words of any length. Immutable; safe from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include <span>
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/ids.h"

namespace loopserve::worker {

class BpeMerges {
 public:
  // Stands for a symbol without a token: it merges with nothing and leaves no trace.
  static constexpr common::TokenId kNoToken = -1;

  // The next merge in rank order. InvalidArgument if the pair already has a rank.
  absl::Status Add(common::TokenId left, common::TokenId right, common::TokenId merged);

  // Merges the symbols of one word and appends its tokens to `out`. Words hold less than 2^31
  // symbols.
  void Apply(std::span<const common::TokenId> word, std::vector<common::TokenId>& out) const;

  size_t size() const { return merges_.size(); }

 private:
  struct Merge {
    common::TokenId left;
    common::TokenId right;
    common::TokenId merged;
  };
  static uint64_t PairKey(common::TokenId left, common::TokenId right);
  // Rank of a pair, or -1.
  int32_t RankOf(common::TokenId left, common::TokenId right) const;

  std::vector<Merge> merges_;                     // by rank
  absl::flat_hash_map<uint64_t, int32_t> ranks_;  // by pair
};

}  // namespace loopserve::worker
