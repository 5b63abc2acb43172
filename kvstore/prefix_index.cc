#include "kvstore/prefix_index.h"

#include <algorithm>

namespace loopserve::kvstore {

PrefixMatch LongestPrefix(const BlockKey& root, std::span<const common::TokenId> tokens,
                          int block_tokens, BlockPresent present) {
  PrefixMatch match;
  match.block_tokens = block_tokens;
  const auto size = static_cast<size_t>(block_tokens);
  BlockKey parent = root;
  size_t begin = 0;
  for (; begin + size <= tokens.size(); begin += size) {
    const BlockKey key = ChildKey(parent, tokens.subspan(begin, size));
    if (!present(key)) break;
    match.full.push_back(key);
    parent = key;
  }
  for (size_t tail = std::min(size - 1, tokens.size() - begin); tail > 0; --tail) {
    const BlockKey key = ChildKey(parent, tokens.subspan(begin, tail));
    if (!present(key)) continue;
    match.tail_tokens = static_cast<int32_t>(tail);
    match.tail = key;
    break;
  }
  return match;
}

std::vector<BlockKey> BlockKeys(const BlockKey& root, std::span<const common::TokenId> tokens,
                                int block_tokens) {
  std::vector<BlockKey> keys = ChainKeys(root, tokens, block_tokens);
  if (const size_t rest = tokens.size() % static_cast<size_t>(block_tokens); rest > 0) {
    keys.push_back(ChildKey(keys.empty() ? root : keys.back(), tokens.last(rest)));
  }
  return keys;
}

std::vector<BlockKey> AllPrefixKeys(const BlockKey& root, std::span<const common::TokenId> tokens,
                                    int block_tokens) {
  std::vector<BlockKey> keys;
  const auto size = static_cast<size_t>(block_tokens);
  BlockKey parent = root;
  for (size_t begin = 0; begin < tokens.size(); begin += size) {
    const size_t here = std::min(size, tokens.size() - begin);
    for (size_t count = 1; count <= here; ++count) {
      keys.push_back(ChildKey(parent, tokens.subspan(begin, count)));
    }
    parent = keys.back();
  }
  return keys;
}

}  // namespace loopserve::kvstore
