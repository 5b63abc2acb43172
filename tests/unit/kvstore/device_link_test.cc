// The store over memory that the host cannot address: copies run in the background and can fail.
#include "kvstore/device_link.h"

#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "kvstore/store.h"
#include "tests/support/deferred_memory.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace loopserve::kvstore {
namespace {

using common::TokenId;
using testing::StatusIs;

constexpr int64_t kTokens = 126;  // 31 blocks and a half one

class DeviceLinkTest : public ::testing::TestWithParam<const char*> {
 protected:
  DeviceLinkTest() { Open(); }
  void Open() {
    store_.reset();
    store_ = *CreateKvStore(options_, kv_.pool(), kv_metrics_, common::Logger::Null());
  }
  absl::Status Save(std::vector<BlockHandle> blocks) {
    absl::Notification over;
    absl::Status status;
    store_->Save({root_, tokens_, std::move(blocks)}, [&](absl::Status s) {
      status = std::move(s);
      over.Notify();
    });
    over.WaitForNotification();
    return status;
  }
  RestoreResult Restore(const std::vector<BlockHandle>& blocks) {
    absl::Notification over;
    RestoreResult result;
    store_->Restore({.root = root_, .tokens = tokens_, .to_token = kTokens, .blocks = blocks},
                    [&](RestoreResult r) {
                      result = std::move(r);
                      over.Notify();
                    });
    over.WaitForNotification();
    return result;
  }
  bool exact() const { return options_.codec == "bf16"; }

  testing::TempDir dir_;
  StoreOptions options_{.host_bytes = 1 << 20,
                        .disk_directory = dir_.path(),
                        .disk_bytes = 1 << 22,
                        .codec = GetParam()};
  const BlockKey root_ = RootKey({.model = "m"});
  const std::vector<TokenId> tokens_ = testing::RandomTokens(kTokens, 7);
  testing::DeferredMemory* memory_ = nullptr;
  testing::KvPoolFixture kv_{128, testing::SmallShape(), [this] {
                               auto memory = std::make_unique<testing::DeferredMemory>();
                               memory_ = memory.get();
                               return memory;
                             }()};
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("test");
  KvMetrics kv_metrics_{*metrics_};
  std::unique_ptr<KvStore> store_;
};

INSTANTIATE_TEST_SUITE_P(Codecs, DeviceLinkTest, ::testing::Values("bf16", "int8"));

TEST_P(DeviceLinkTest, WhatIsHandedOutHasArrived) {
  ASSERT_OK(Save(kv_.Compute(tokens_)));
  const auto blocks = kv_.Allocate(kTokens);
  const int fences = memory_->fences();
  const RestoreResult result = Restore(blocks);
  EXPECT_EQ(result.restored_tokens, kTokens);
  // Eight blocks at a time, each time once for both ranks.
  EXPECT_EQ(memory_->fences() - fences, 4 * kv_.pool().ranks());
  if (exact()) {
    EXPECT_EQ(kv_.Exact(tokens_, 0, blocks), kTokens);
  }
  for (const BlockHandle& block : blocks) EXPECT_FALSE(kv_.IsUntouched(block));
}

TEST_P(DeviceLinkTest, FromDiskToo) {
  ASSERT_OK(Save(kv_.Compute(tokens_)));
  ASSERT_OK(store_->Flush(absl::Minutes(1)));
  Open();
  for (const Place place : {Place::kDisk, Place::kHost}) {
    const auto blocks = kv_.Allocate(kTokens);
    const RestoreResult result = Restore(blocks);
    EXPECT_EQ(result.restored_tokens, kTokens);
    EXPECT_EQ(result.tokens_by_place[static_cast<size_t>(place)], static_cast<uint64_t>(kTokens));
    if (exact()) {
      EXPECT_EQ(kv_.Exact(tokens_, 0, blocks), kTokens);
    }
  }
}

TEST_P(DeviceLinkTest, ACopyThatCannotStartEndsTheRestoreThere) {
  ASSERT_OK(Save(kv_.Compute(tokens_)));
  const auto blocks = kv_.Allocate(kTokens);
  // Four runs for each of two ranks make a block: five blocks and a bit.
  memory_->FailCopies(44, absl::InternalError("lost"));
  const RestoreResult result = Restore(blocks);
  memory_->FailCopies(0, absl::OkStatus());
  EXPECT_LT(result.restored_tokens, kTokens);
  EXPECT_NE(result.short_reason, "");
  if (exact()) {
    EXPECT_GE(kv_.Exact(tokens_, 0, blocks), result.restored_tokens);
  }
}

TEST_P(DeviceLinkTest, AFenceThatFailsHandsOutNothing) {
  ASSERT_OK(Save(kv_.Compute(tokens_)));
  const auto blocks = kv_.Allocate(kTokens);
  memory_->FailFences(absl::InternalError("lost"));
  const RestoreResult result = Restore(blocks);
  EXPECT_EQ(result.restored_tokens, 0);
  EXPECT_EQ(result.short_reason, "miss");
  memory_->FailFences(absl::OkStatus());
  EXPECT_EQ(Restore(kv_.Allocate(kTokens)).restored_tokens, kTokens) << "nothing was forgotten";
}

TEST_P(DeviceLinkTest, ASaveWhoseCopiesFailStoresNothingOfThem) {
  auto blocks = kv_.Compute(tokens_);
  memory_->FailFences(absl::InternalError("lost"));
  EXPECT_THAT(Save(std::move(blocks)), StatusIs(absl::StatusCode::kInternal));
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 0);
}

TEST_P(DeviceLinkTest, WithoutMemoryToPinItWorksAllTheSame) {
  memory_->LimitHostMemory(0);
  Open();
  ASSERT_OK(Save(kv_.Compute(tokens_)));
  const auto blocks = kv_.Allocate(kTokens);
  EXPECT_EQ(Restore(blocks).restored_tokens, kTokens);
  if (exact()) {
    EXPECT_EQ(kv_.Exact(tokens_, 0, blocks), kTokens);
  }
}

TEST(DeviceLinkSizesTest, OnlyWhatTheHostCannotAddressIsBatched) {
  testing::KvPoolFixture host;
  EXPECT_EQ(BlocksPerBatch(host.pool()), 1u);
  EXPECT_EQ(BlocksPerRound(host.pool()), 1u);
  EXPECT_EQ(LoadThreads(host.pool(), 3), 3);
  EXPECT_EQ(ReserveArena(host.pool(), 1 << 20, common::Logger::Null()), nullptr);
  testing::KvPoolFixture device(1, testing::SmallShape(),
                                std::make_unique<testing::DeferredMemory>());
  EXPECT_EQ(BlocksPerBatch(device.pool()), 8u);
  EXPECT_EQ(BlocksPerRound(device.pool()), 16u);
  EXPECT_GE(LoadThreads(device.pool(), 3), 3);
  EXPECT_GE(ReserveArena(device.pool(), 1 << 20, common::Logger::Null())->size(), 1u << 20);
  // Blocks of an 8B model: 4 MiB.
  testing::KvPoolFixture large(1,
                               {.layers = 32, .kv_heads = 3, .head_dim = 341, .block_tokens = 32},
                               std::make_unique<testing::DeferredMemory>());
  EXPECT_EQ(BlocksPerBatch(large.pool()), 4u);
  EXPECT_EQ(BlocksPerRound(large.pool()), 8u);
}

TEST_P(DeviceLinkTest, ATailIsCopiedOnTheDevice) {
  const auto blocks = kv_.Compute(std::span(tokens_).first(4));
  const auto copy = kv_.Allocate(4);
  ASSERT_OK(kv_.pool().CopyBlock(blocks[0].id(), copy[0].id()));
  EXPECT_EQ(kv_.Exact(std::span(tokens_).first(4), 0, copy), 4);
}

}  // namespace
}  // namespace loopserve::kvstore
