#include "worker/text/bpe.h"

#include <algorithm>

namespace loopserve::worker {
namespace {

// A doubly linked list over the word, so that a merge is O(1). A symbol merged away into its left
// neighbour gets token kNoToken, which no merge names.
struct Symbol {
  common::TokenId token;
  int32_t previous;
  int32_t next;
};

// A pair that could be merged when it was queued; stale once either symbol has changed.
struct Candidate {
  int32_t rank;
  int32_t left;
  int32_t right;
  // For std heaps, which put the largest first.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

}  // namespace

uint64_t BpeMerges::PairKey(common::TokenId left, common::TokenId right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

absl::Status BpeMerges::Add(common::TokenId left, common::TokenId right, common::TokenId merged) {
  const auto rank = static_cast<int32_t>(merges_.size());
  if (!ranks_.emplace(PairKey(left, right), rank).second) {
    return absl::InvalidArgumentError("the pair of this merge already has a rank");
  }
  merges_.push_back({left, right, merged});
  return absl::OkStatus();
}

int32_t BpeMerges::RankOf(common::TokenId left, common::TokenId right) const {
  const auto it = ranks_.find(PairKey(left, right));
  return it == ranks_.end() ? -1 : it->second;
}

void BpeMerges::Apply(std::span<const common::TokenId> word,
                      std::vector<common::TokenId>& out) const {
  const auto count = static_cast<int32_t>(word.size());
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  std::vector<Candidate> queue;
  for (int32_t i = 0; i < count; ++i) {
    symbols.push_back({word[i], i - 1, i + 1 < count ? i + 1 : -1});
    if (i == 0) continue;
    if (const int32_t rank = RankOf(word[i - 1], word[i]); rank >= 0) {
      queue.push_back({rank, i - 1, i});
    }
  }
  std::make_heap(queue.begin(), queue.end());
  const auto enqueue = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const int32_t rank = RankOf(symbols[left].token, symbols[right].token);
    if (rank < 0) return;
    queue.push_back({rank, left, right});
    std::push_heap(queue.begin(), queue.end());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end());
    const Candidate candidate = queue.back();
    queue.pop_back();
    const Merge& merge = merges_[candidate.rank];
    Symbol& left = symbols[candidate.left];
    Symbol& right = symbols[candidate.right];
    // Tokens only grow, so two unchanged symbols are still neighbours.
    if (left.token != merge.left || right.token != merge.right) continue;
    left.token = merge.merged;
    right.token = kNoToken;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = candidate.left;
    enqueue(left.previous, candidate.left);
    enqueue(candidate.left, left.next);
  }
  for (const Symbol& symbol : symbols) {
    if (symbol.token != kNoToken) out.push_back(symbol.token);
  }
}

}  // namespace loopserve::worker
