// A block pool with sequences of KV in it, for tests of saving and restoring.
#pragma once

#include <memory>
#include <vector>

#include "kvstore/block_pool.h"
#include "kvstore/memory.h"
#include "tests/support/kv_bytes.h"

namespace loopserve::testing {

// Of the three KV heads the first rank has one and the second two, unless told otherwise.
class KvPoolFixture {
 public:
  explicit KvPoolFixture(uint32_t num_blocks = 64, kvstore::KvShape shape = SmallShape(),
                         std::unique_ptr<kvstore::Memory> memory = kvstore::CreateHostMemory(),
                         const std::vector<int32_t>& heads_of_ranks = {1, 2})
      : memory_(std::move(memory)) {
    std::vector<kvstore::KvBlockPool::Shard> shards;
    int32_t first = 0;
    for (const int32_t heads : heads_of_ranks) {
      shards.push_back({memory_.get(), first, heads});
      first += heads;
    }
    pool_ = kvstore::KvBlockPool::Create(shape, num_blocks, shards).value();
  }

  kvstore::KvBlockPool& pool() { return *pool_; }
  const kvstore::KvBlockPool& pool() const { return *pool_; }

  // The KV that a model would compute for the block of `tokens` after `before`: a function of all
  // tokens up to its end.
  std::vector<std::byte> KvOf(std::span<const common::TokenId> tokens_so_far) const {
    uint32_t seed = 1;
    for (const common::TokenId t : tokens_so_far) seed = seed * 31 + static_cast<uint32_t>(t);
    return RandomBlock(pool_->shape(), seed);
  }

  // Fresh blocks that hold the KV of `tokens`.
  std::vector<kvstore::BlockHandle> Compute(std::span<const common::TokenId> tokens) {
    std::vector<kvstore::BlockHandle> blocks = Allocate(tokens.size());
    for (size_t i = 0; i < blocks.size(); ++i) {
      const size_t end = std::min(tokens.size(), (i + 1) * BlockTokens());
      // A full block's KV does not depend on how the sequence goes on.
      pool_->WriteBlock(blocks[i].id(), KvOf(tokens.first(end))).IgnoreError();
    }
    return blocks;
  }

  // Blocks for that many tokens, filled with 0xee.
  std::vector<kvstore::BlockHandle> Allocate(size_t tokens) {
    std::vector<kvstore::BlockHandle> blocks;
    const std::vector<std::byte> filler(pool_->shape().block_bytes(), std::byte{0xee});
    for (size_t i = 0; i * BlockTokens() < tokens; ++i) {
      blocks.push_back(*pool_->Allocate());
      pool_->WriteBlock(blocks.back().id(), filler).IgnoreError();
    }
    return blocks;
  }

  // How many of `tokens`, from token `from` on, `blocks` (whose first holds `from`) hold exactly,
  // counted in whole blocks and tails.
  int64_t Exact(std::span<const common::TokenId> tokens, size_t from,
                const std::vector<kvstore::BlockHandle>& blocks) {
    int64_t exact = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const size_t begin = from + i * BlockTokens();
      const size_t end = std::min(tokens.size(), begin + BlockTokens());
      if (!Holds(blocks[i], KvOf(tokens.first(end)), end - begin)) break;
      exact += static_cast<int64_t>(end - begin);
    }
    return exact;
  }

  bool IsUntouched(const kvstore::BlockHandle& block) {
    const std::vector<std::byte> filler(pool_->shape().block_bytes(), std::byte{0xee});
    return Holds(block, filler, BlockTokens());
  }

  size_t BlockTokens() const { return static_cast<size_t>(pool_->shape().block_tokens); }

 private:
  bool Holds(const kvstore::BlockHandle& block, const std::vector<std::byte>& want, size_t tokens) {
    const kvstore::KvShape& shape = pool_->shape();
    std::vector<std::byte> have(shape.block_bytes());
    pool_->ReadBlock(block.id(), have).IgnoreError();
    const size_t row = tokens * static_cast<size_t>(shape.head_dim) * 2;
    for (size_t at = 0; at < have.size(); at += shape.head_bytes()) {
      if (std::memcmp(have.data() + at, want.data() + at, row) != 0) return false;
    }
    return true;
  }

  std::unique_ptr<kvstore::Memory> memory_;
  std::unique_ptr<kvstore::KvBlockPool> pool_;
};

}  // namespace loopserve::testing
