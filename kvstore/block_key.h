// Names of cached blocks. A block's key is a hash over everything its bytes depend on: the
// fingerprint of the cache (model, KV layout, lossy policies, tenant salt) and all tokens up to and
// including the block. So equal keys mean equal KV, prefixes are shared across sessions by
// construction, and a fork costs nothing.
//
// Keys are hashes, so what is found under one is verified: every stored block repeats its parent
// key and its own token ids, and a mismatch anywhere in the chain means recompute.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/checksum.h"
#include "common/ids.h"

namespace loopserve::kvstore {

struct BlockKey {
  common::Hash128 hash;
  auto operator<=>(const BlockKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& key) {
    return H::combine(std::move(h), key.hash);
  }
};

// What a cache's bytes depend on besides the tokens.
struct Fingerprint {
  std::string model;             // ModelConfig::fingerprint
  std::string layout;            // dtype, block_tokens, layers, heads: KvShape as text
  std::string policy = "exact";  // changes when a lossy policy shaped the KV
  std::string cache_namespace;   // tenant salt: prefixes are shared within it only
};

// The key before the first token.
BlockKey RootKey(const Fingerprint& fingerprint);
// The key of the block that holds `tokens` (a full block, or the shorter tail) after `parent`.
BlockKey ChildKey(const BlockKey& parent, std::span<const common::TokenId> tokens);
// Keys of the full blocks of `tokens`, in order.
std::vector<BlockKey> ChainKeys(const BlockKey& root, std::span<const common::TokenId> tokens,
                                int block_tokens);

}  // namespace loopserve::kvstore
