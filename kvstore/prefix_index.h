// The longest known prefix of a token sequence, as keys of blocks.
//
// Keys name content, so the index needs no state of its own: it computes the keys that the sequence
// would have and asks, one after the other, whether they are present. After the last full block it
// tries the lengths that a partial tail can have, longest first. Both cost nanoseconds per block
// against the microseconds of loading one; and what can be asked cannot be out of date.
//
// Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/ids.h"
#include "kvstore/block_key.h"

namespace loopserve::kvstore {

struct PrefixMatch {
  std::vector<BlockKey> full;  // keys of the full blocks, in order
  int block_tokens = 0;
  int32_t tail_tokens = 0;  // of a partial block after them; 0: none
  BlockKey tail;

  int64_t tokens() const { return static_cast<int64_t>(full.size()) * block_tokens + tail_tokens; }
};

using BlockPresent = absl::FunctionRef<bool(const BlockKey&)>;

PrefixMatch LongestPrefix(const BlockKey& root, std::span<const common::TokenId> tokens,
                          int block_tokens, BlockPresent present);

// The keys of all blocks of `tokens`: the full ones and, if some tokens are left, the partial tail.
std::vector<BlockKey> BlockKeys(const BlockKey& root, std::span<const common::TokenId> tokens,
                                int block_tokens);

// Every key under which a prefix of `tokens` may be stored: full blocks and partial tails of all
// lengths, for what must be gone for good.
std::vector<BlockKey> AllPrefixKeys(const BlockKey& root, std::span<const common::TokenId> tokens,
                                    int block_tokens);

}  // namespace loopserve::kvstore
