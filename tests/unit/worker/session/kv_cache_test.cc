#include "worker/session/kv_cache.h"

#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/memory.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/worker/session/fakes.h"

namespace loopserve::worker {
namespace {

using common::TokenId;
using kvstore::BlockHandle;
using kvstore::BlockKey;
using kvstore::KvBlockPool;
using kvstore::Place;
using kvstore::RestoreResult;
using Tokens = std::vector<TokenId>;

Tokens Range(TokenId to) {
  Tokens tokens(static_cast<size_t>(to));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

class KvCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    memory_ = kvstore::CreateHostMemory();
    metrics_ = common::Metrics::Create("test");
    kv_metrics_ = std::make_unique<kvstore::KvMetrics>(*metrics_);
    ASSERT_OK_AND_ASSIGN(
        pool_,
        KvBlockPool::Create({.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 4}, 6,
                            {{.memory = memory_.get(), .first_kv_head = 0, .kv_heads = 1}}));
    store_ = std::make_unique<testing::FakeKvStore>(*pool_, Place::kDisk);
    cache_ = std::make_unique<KvCache>(KvCache::Options{.model_fingerprint = "m"}, *pool_,
                                       store_.get(), *kv_metrics_);
    root_ = cache_->Root("tenant/a");
  }

  std::optional<AcquiredKv> Acquire(const Tokens& tokens, bool use_cache = true,
                                    int64_t reserve = 0) {
    auto acquired = cache_->Acquire(root_, tokens, use_cache, reserve);
    EXPECT_OK(acquired);
    return acquired.ok() ? *std::move(acquired) : std::nullopt;
  }
  void Fill(const BlockHandle& block, uint8_t value) {
    std::memset(pool_->arena(0).block(block.id()), value, pool_->shape().block_bytes());
  }
  uint8_t FirstByte(const BlockHandle& block) {
    return std::to_integer<uint8_t>(*pool_->arena(0).block(block.id()));
  }
  // Computes and keeps `tokens` as a finished turn does.
  void Turn(const Tokens& tokens, bool save = true) {
    auto acquired = Acquire(tokens);
    ASSERT_TRUE(acquired);
    for (size_t i = 0; i < acquired->blocks.size(); ++i) {
      Fill(acquired->blocks[i], static_cast<uint8_t>(i + 1));
    }
    cache_->Keep(root_, tokens, std::move(acquired->blocks), save);
  }
  RestoreResult Restore(const Tokens& tokens, const AcquiredKv& acquired) {
    RestoreResult out;
    cache_->Restore(root_, tokens, acquired.device_tokens, acquired.blocks, 0,
                    [&](RestoreResult result) { out = std::move(result); });
    return out;
  }

  BlockKey RootWith(absl::string_view activation_format) {
    return KvCache({.model_fingerprint = "m", .policy_tag = KvCache::PolicyTag(activation_format)},
                   *pool_, store_.get(), *kv_metrics_)
        .Root("tenant/a");
  }

  std::unique_ptr<kvstore::Memory> memory_;
  std::unique_ptr<common::Metrics> metrics_;
  std::unique_ptr<kvstore::KvMetrics> kv_metrics_;
  std::unique_ptr<KvBlockPool> pool_;
  std::unique_ptr<testing::FakeKvStore> store_;
  std::unique_ptr<KvCache> cache_;
  BlockKey root_;
};

TEST_F(KvCacheTest, KvOfOtherArithmeticIsNotMixed) {
  EXPECT_EQ(RootWith("16"), root_);
  EXPECT_NE(RootWith("8"), root_);
  EXPECT_NE(RootWith("e4m3"), root_);
  EXPECT_NE(RootWith("e4m3"), RootWith("8"));
}

TEST_F(KvCacheTest, RootsDifferByNamespaceModelAndPolicy) {
  EXPECT_EQ(cache_->Root("x"), cache_->Root("x"));
  EXPECT_NE(cache_->Root("x"), cache_->Root("y"));
  const KvCache other({.model_fingerprint = "n"}, *pool_, nullptr, *kv_metrics_);
  EXPECT_NE(cache_->Root("x"), other.Root("x"));
}

TEST_F(KvCacheTest, AColdSequenceGetsFreshBlocksForAllItsTokens) {
  const auto acquired = Acquire(Range(9));
  ASSERT_TRUE(acquired);
  EXPECT_EQ(acquired->blocks.size(), 3u);
  EXPECT_EQ(acquired->device_tokens, 0);
}

TEST_F(KvCacheTest, AReturningSequenceSharesFullBlocksAndCopiesTheTail) {
  Turn(Range(6));
  const auto acquired = Acquire(Range(9));
  ASSERT_TRUE(acquired);
  EXPECT_EQ(acquired->device_tokens, 6);
  EXPECT_EQ(pool_->use_count(acquired->blocks[0].id()), 2u);
  EXPECT_EQ(pool_->use_count(acquired->blocks[1].id()), 1u);
  EXPECT_EQ(FirstByte(acquired->blocks[1]), 2);
  Fill(acquired->blocks[1], 77);
  const auto again = Acquire(Range(7));
  EXPECT_EQ(FirstByte(again->blocks[1]), 2) << "the cached tail was written to";
}

TEST_F(KvCacheTest, TheLastTokenIsAlwaysComputed) {
  Turn(Range(8));
  const auto acquired = Acquire(Range(8));
  ASSERT_TRUE(acquired);
  EXPECT_EQ(acquired->device_tokens, 7);
  EXPECT_EQ(pool_->use_count(acquired->blocks[1].id()), 1u) << "will be written";
}

TEST_F(KvCacheTest, BypassTakesFreshBlocksOnly) {
  Turn(Range(8));
  const auto acquired = Acquire(Range(9), false);
  ASSERT_TRUE(acquired);
  EXPECT_EQ(acquired->device_tokens, 0);
  for (const BlockHandle& block : acquired->blocks) EXPECT_EQ(pool_->use_count(block.id()), 1u);
}

TEST_F(KvCacheTest, TooFewBlocksHoldsNone) {
  const auto first = Acquire(Range(16));
  ASSERT_TRUE(first);
  EXPECT_FALSE(Acquire({9, 9, 9, 9, 9, 9, 9, 9, 9}));
  EXPECT_EQ(pool_->free_blocks(), 2u);
  EXPECT_FALSE(Acquire({9, 9, 9, 9, 9, 9, 9, 9}, true, 1));
  EXPECT_TRUE(Acquire({9, 9, 9, 9, 9, 9, 9, 9}, true, 0));
}

TEST_F(KvCacheTest, UnreferencedBlocksMakeRoom) {
  Turn(Range(16));
  Turn({100, 101, 102, 103, 104, 105, 106});
  EXPECT_EQ(pool_->free_blocks(), 0u);
  EXPECT_EQ(cache_->available_blocks(), 6);
  EXPECT_TRUE(Acquire(Tokens(20, 7)));
  EXPECT_NE(metrics_->Render().find(
                "loopserve_kv_evictions_total{reason=\"capacity\",tier=\"device\"} 5"),
            std::string::npos);
}

TEST_F(KvCacheTest, TheTailsOwnBlockIsGivenUpWhenItIsTheMissingOne) {
  Turn(Range(22));  // all six blocks, the last one a tail
  const auto acquired = Acquire(Range(24));
  ASSERT_TRUE(acquired);
  EXPECT_EQ(acquired->device_tokens, 20);
  EXPECT_EQ(acquired->blocks.size(), 6u);
}

TEST_F(KvCacheTest, AllocateEvicts) {
  Turn(Range(24));
  EXPECT_TRUE(cache_->Allocate());
  const auto held = Acquire(Range(24));
  ASSERT_TRUE(held);
  EXPECT_FALSE(cache_->Allocate());
}

TEST_F(KvCacheTest, RestoreBringsBackWhatLeftTheDevice) {
  Turn(Range(10));
  cache_->device().Clear();
  const auto acquired = Acquire(Range(12));
  ASSERT_TRUE(acquired);
  EXPECT_EQ(acquired->device_tokens, 0);
  const RestoreResult result = Restore(Range(12), *acquired);
  EXPECT_EQ(result.restored_tokens, 10);
  EXPECT_EQ(result.tokens_by_place[static_cast<size_t>(Place::kDisk)], 10u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(FirstByte(acquired->blocks[i]), i + 1);
}

TEST_F(KvCacheTest, RestoreNeverCoversTheLastToken) {
  Turn(Range(8));
  cache_->device().Clear();
  const auto acquired = Acquire(Range(8));
  ASSERT_TRUE(acquired);
  EXPECT_EQ(Restore(Range(8), *acquired).restored_tokens, 4);
}

TEST_F(KvCacheTest, TheStoreIsNotAskedWhenTheDeviceHasAll) {
  Turn(Range(8));
  const auto acquired = Acquire(Range(9));
  Restore(Range(9), *acquired);
  EXPECT_EQ(store_->lookups(), 0);
}

TEST_F(KvCacheTest, AStoreThatKnowsNoMoreThanTheDeviceIsAMiss) {
  Turn(Range(6));
  const auto acquired = Acquire(Range(12));
  ASSERT_EQ(acquired->device_tokens, 6);
  const RestoreResult result = Restore(Range(12), *acquired);
  EXPECT_EQ(result.restored_tokens, 0);
  EXPECT_EQ(result.short_reason, "miss");
}

TEST_F(KvCacheTest, WithoutAStoreRestoreAnswersAtOnce) {
  KvCache alone({.model_fingerprint = "m"}, *pool_, nullptr, *kv_metrics_);
  bool called = false;
  alone.Restore(root_, Range(9), 0, {}, 0, [&](RestoreResult result) {
    called = true;
    EXPECT_EQ(result.restored_tokens, 0);
  });
  EXPECT_TRUE(called);
}

TEST_F(KvCacheTest, KeepWithoutSaveStaysOnTheDevice) {
  Turn(Range(8), false);
  EXPECT_EQ(store_->saves(), 0);
  EXPECT_EQ(cache_->device().size(), 2);
}

TEST_F(KvCacheTest, SavedIsToldOnceTheBlocksAreLetGo) {
  auto acquired = Acquire(Range(8));
  ASSERT_TRUE(acquired);
  int told = 0;
  cache_->Keep(root_, Range(8), std::move(acquired->blocks), true, [&] {
    ++told;
    EXPECT_EQ(cache_->available_blocks(), 6);
  });
  EXPECT_EQ(told, 1);
}

TEST_F(KvCacheTest, ForgetEmptiesDeviceAndStore) {
  Turn(Range(10));
  Tokens log = Range(11);  // the last token's KV was never computed
  ASSERT_OK(cache_->Forget(root_, log));
  EXPECT_EQ(cache_->device().size(), 0);
  EXPECT_EQ(store_->size(), 0u);
}

TEST_F(KvCacheTest, WhatOthersNeedIsKept) {
  Turn(Range(14));
  ASSERT_OK(cache_->Forget(root_, Range(15), 9));  // two full blocks and one token
  EXPECT_EQ(cache_->device().size(), 2);
  EXPECT_EQ(store_->size(), 2u);
  cache_->Park(root_, Range(9), 5);
  EXPECT_EQ(cache_->device().size(), 1);
  EXPECT_EQ(store_->parked(), (Tokens{4, 5, 6, 7}));
}

TEST_F(KvCacheTest, ParkLeavesTheDeviceAndPrefetchAsksTheStore) {
  Turn(Range(10));
  cache_->Park(root_, Range(11));
  EXPECT_EQ(cache_->device().size(), 0);
  EXPECT_EQ(store_->parked(), Range(10));
  EXPECT_EQ(store_->size(), 3u);
  cache_->Prefetch(root_, Range(11));
  EXPECT_EQ(store_->prefetched(), Range(10));
}

TEST_F(KvCacheTest, CachesOfDifferentDtypesNeverMix) {
  std::vector<common::Hash128> roots = {root_.hash};
  for (const auto dtype : {kvstore::KvDtype::kInt8, kvstore::KvDtype::kFp8}) {
    kvstore::KvShape shape = pool_->shape();
    shape.dtype = dtype;
    const auto pool = *KvBlockPool::Create(
        shape, 6, {{.memory = memory_.get(), .first_kv_head = 0, .kv_heads = 1}});
    const KvCache cache({.model_fingerprint = "m", .codec = kvstore::DtypeName(dtype)}, *pool,
                        nullptr, *kv_metrics_);
    roots.push_back(cache.Root("tenant/a").hash);
    EXPECT_EQ(cache.device_bits(), 8);
    EXPECT_EQ(cache.restored_bits(), 8);
  }
  EXPECT_NE(roots[0], roots[1]);
  EXPECT_NE(roots[0], roots[2]);
  EXPECT_NE(roots[1], roots[2]);
  EXPECT_EQ(cache_->device_bits(), 16);
  EXPECT_EQ(cache_->restored_bits(), 16);
}

TEST_F(KvCacheTest, GaugesTellFreeActiveAndCached) {
  Turn(Range(8));
  const auto running = Acquire({50, 51, 52});
  const std::string text = metrics_->Render();
  auto has = [&](const std::string& line) { return text.find(line) != std::string::npos; };
  EXPECT_TRUE(has("loopserve_kv_blocks{state=\"free\",tier=\"device\"} 3")) << text;
  EXPECT_TRUE(has("loopserve_kv_blocks{state=\"active\",tier=\"device\"} 1")) << text;
  EXPECT_TRUE(has("loopserve_kv_blocks{state=\"cached\",tier=\"device\"} 2")) << text;
}

}  // namespace
}  // namespace loopserve::worker
