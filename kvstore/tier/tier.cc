#include "kvstore/tier/tier.h"

#include "kvstore/prefix_index.h"

namespace loopserve::kvstore {

absl::StatusOr<int64_t> Tier::Lookup(const BlockKey& root, std::span<const common::TokenId> tokens,
                                     int block_tokens) {
  return LongestPrefix(root, tokens, block_tokens,
                       [this](const BlockKey& key) { return Contains({.block = key, .plane = 0}); })
      .tokens();
}

}  // namespace loopserve::kvstore
