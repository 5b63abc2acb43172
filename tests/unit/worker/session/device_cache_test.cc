#include "worker/session/device_cache.h"

#include <memory>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/memory.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using common::TokenId;
using kvstore::BlockHandle;
using kvstore::BlockKey;
using kvstore::KvBlockPool;
using Tokens = std::vector<TokenId>;

class DeviceCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    memory_ = kvstore::CreateHostMemory();
    ASSERT_OK_AND_ASSIGN(
        pool_,
        KvBlockPool::Create({.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 4}, 8,
                            {{.memory = memory_.get(), .first_kv_head = 0, .kv_heads = 1}}));
    cache_ = std::make_unique<DeviceCache>(*pool_);
  }

  std::vector<BlockHandle> Blocks(size_t count) {
    std::vector<BlockHandle> blocks;
    for (size_t i = 0; i < count; ++i) blocks.push_back(*pool_->Allocate());
    return blocks;
  }
  // Inserts fresh blocks for `tokens`, which only the cache holds afterwards.
  std::vector<uint32_t> Put(const Tokens& tokens) {
    const auto blocks = Blocks((tokens.size() + 3) / 4);
    cache_->Insert(root_, tokens, blocks);
    std::vector<uint32_t> ids;
    for (const BlockHandle& block : blocks) ids.push_back(block.id().value());
    return ids;
  }

  const BlockKey root_ = kvstore::RootKey({.model = "m", .layout = "l"});
  std::unique_ptr<kvstore::Memory> memory_;
  std::unique_ptr<KvBlockPool> pool_;
  std::unique_ptr<DeviceCache> cache_;
};

Tokens Range(TokenId from, TokenId to) {
  Tokens tokens(static_cast<size_t>(to - from));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

TEST_F(DeviceCacheTest, EmptyMatchesNothing) {
  const DeviceMatch match = cache_->Match(root_, Range(0, 10));
  EXPECT_TRUE(match.full.empty());
  EXPECT_FALSE(match.tail);
}

TEST_F(DeviceCacheTest, FullBlocksAreSharedAndTheTailIsOffered) {
  const auto ids = Put(Range(0, 10));
  const DeviceMatch match = cache_->Match(root_, Range(0, 20));
  ASSERT_EQ(match.full.size(), 2u);
  EXPECT_EQ(match.full[0].id().value(), ids[0]);
  EXPECT_EQ(match.full[1].id().value(), ids[1]);
  EXPECT_EQ(match.tail.id().value(), ids[2]);
  EXPECT_EQ(match.tail_tokens, 2);
  EXPECT_EQ(pool_->use_count(match.full[0].id()), 2u);
}

TEST_F(DeviceCacheTest, ABlockThatDivergesIsUsedAsFarAsItAgrees) {
  const auto ids = Put(Range(0, 8));
  Tokens other = Range(0, 8);
  other[6] = 99;
  const DeviceMatch match = cache_->Match(root_, other);
  EXPECT_EQ(match.full.size(), 1u);
  EXPECT_EQ(match.tail.id().value(), ids[1]);
  EXPECT_EQ(match.tail_tokens, 2);
}

TEST_F(DeviceCacheTest, AShorterQuestionUsesAPartOfAFullBlock) {
  Put(Range(0, 8));
  const DeviceMatch match = cache_->Match(root_, Range(0, 7));
  EXPECT_EQ(match.full.size(), 1u);
  EXPECT_EQ(match.tail_tokens, 3);
}

TEST_F(DeviceCacheTest, AnotherNamespaceSharesNothing) {
  Put(Range(0, 8));
  const BlockKey other = kvstore::RootKey({.model = "m", .layout = "l", .cache_namespace = "b"});
  const DeviceMatch match = cache_->Match(other, Range(0, 8));
  EXPECT_TRUE(match.full.empty());
  EXPECT_FALSE(match.tail);
}

TEST_F(DeviceCacheTest, TheLongestOfSeveralTailsWins) {
  Put({0, 1, 2, 3, 10});
  const auto longest = Put({0, 1, 2, 3, 20, 21, 22});
  Put({0, 1, 2, 3, 20, 31});
  const DeviceMatch match = cache_->Match(root_, Tokens{0, 1, 2, 3, 20, 21, 22, 23, 24});
  EXPECT_EQ(match.tail.id().value(), longest[1]);
  EXPECT_EQ(match.tail_tokens, 3);
}

TEST_F(DeviceCacheTest, InsertKeepsWhatIsThereAndFreesTheDuplicate) {
  const auto first = Put(Range(0, 8));
  const auto second = Put(Range(0, 8));
  EXPECT_EQ(cache_->size(), 2);
  EXPECT_EQ(pool_->free_blocks(), 6u);
  EXPECT_EQ(cache_->Match(root_, Range(0, 8)).full[0].id().value(), first[0]);
}

TEST_F(DeviceCacheTest, ATailGivesWayToALongerBlockThatBeginsWithIt) {
  Put(Range(0, 6));
  EXPECT_EQ(cache_->size(), 2);
  Put(Range(0, 7));
  EXPECT_EQ(cache_->size(), 2);
  Put(Range(0, 8));
  EXPECT_EQ(cache_->size(), 2);
  Put(Range(0, 5));
  EXPECT_EQ(cache_->size(), 2);
  EXPECT_EQ(cache_->Match(root_, Range(0, 20)).full.size(), 2u);
}

TEST_F(DeviceCacheTest, MakeFreeDropsTheLeastRecentlyUsedAndTailsBeforeTheirPrefix) {
  const auto old = Put(Range(0, 8));
  Put(Range(100, 108));
  cache_->Match(root_, Range(0, 8));
  EXPECT_EQ(cache_->MakeFree(5), 1);
  EXPECT_EQ(cache_->Match(root_, Range(100, 108)).full.size(), 1u);
  EXPECT_EQ(cache_->Match(root_, Range(0, 8)).full.size(), 2u);
  EXPECT_EQ(cache_->MakeFree(8), 3);
  EXPECT_EQ(pool_->free_blocks(), 8u);
  EXPECT_EQ(cache_->size(), 0);
}

TEST_F(DeviceCacheTest, WhatARunningSequenceHoldsIsNotDropped) {
  Put(Range(0, 8));
  const DeviceMatch held = cache_->Match(root_, Range(0, 4));
  EXPECT_EQ(cache_->unreferenced(), 1);
  EXPECT_EQ(cache_->MakeFree(8), 1);
  EXPECT_EQ(pool_->free_blocks(), 7u);
  EXPECT_EQ(cache_->Match(root_, Range(0, 8)).full.size(), 1u);
}

TEST_F(DeviceCacheTest, FreedByCountsWhatNobodyElseHolds) {
  auto mine = Blocks(4);
  cache_->Insert(root_, Range(0, 8), std::span(mine).first(2));
  const BlockHandle other = mine[1];
  const BlockHandle another = mine[3];
  EXPECT_EQ(cache_->FreedBy(mine), 2);  // one cached, one private; two are shared
}

TEST_F(DeviceCacheTest, ForgetDropsTheSequenceAndNothingElse) {
  Put(Range(0, 10));
  Put({0, 1, 2, 3, 50, 51, 52, 53});
  Put(Range(200, 204));
  EXPECT_EQ(cache_->Forget(root_, Range(0, 11)), 3);
  EXPECT_TRUE(cache_->Match(root_, Range(0, 10)).full.empty());
  EXPECT_EQ(cache_->Match(root_, Range(200, 204)).full.size(), 1u);
  EXPECT_EQ(cache_->Forget(root_, Range(0, 11)), 0);
}

// A turn that ends late may still offer blocks of before the loss.
TEST_F(DeviceCacheTest, BlocksWhoseBytesAreLostAreNotTaken) {
  auto mine = Blocks(2);
  pool_->VoidBlocks();
  mine[0] = Blocks(1)[0];
  cache_->Insert(root_, Range(0, 8), mine);
  EXPECT_EQ(cache_->size(), 1);
  EXPECT_EQ(cache_->Match(root_, Range(0, 8)).full.size(), 1u);
}

TEST_F(DeviceCacheTest, ClearLetsEverythingGo) {
  Put(Range(0, 10));
  cache_->Clear();
  EXPECT_EQ(pool_->free_blocks(), 8u);
  EXPECT_TRUE(cache_->Match(root_, Range(0, 10)).full.empty());
}

}  // namespace
}  // namespace loopserve::worker
