#include "kvstore/restore_job.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "absl/synchronization/notification.h"
#include "common/thread.h"
#include "kvstore/codec/codec.h"
#include "kvstore/prefix_index.h"
#include "tests/support/deferred_memory.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

constexpr int kBlock = 4;

class RestoreJobTest : public ::testing::Test {
 protected:
  explicit RestoreJobTest(std::unique_ptr<Memory> memory = CreateHostMemory(),
                          absl::string_view codec = "bf16")
      : codec_(*FindCodec(codec)), kv_(64, testing::SmallShape(), std::move(memory)) {
    const auto keys = BlockKeys(root_, tokens_, kBlock);
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto end = std::min(tokens_.size(), (i + 1) * kBlock);
      const std::span part = std::span(tokens_).subspan(i * kBlock, end - i * kBlock);
      const BlockHeader header{.codec = codec_.wire_id(),
                               .shape = kv_.pool().shape(),
                               .root = root_,
                               .parent = i == 0 ? root_ : keys[i - 1],
                               .key = keys[i],
                               .num_tokens = static_cast<int32_t>(part.size()),
                               .tokens = {part.begin(), part.end()}};
      codec_
          .Encode(header.shape, header.num_tokens, kv_.KvOf(std::span(tokens_).first(end)),
                  [&](size_t, ByteSpan payload) {
                    records_.push_back(EncodeBlockRecord(header, payload));
                    return tier_.Put({keys[i], 0}, Share(records_.back()));
                  })
          .IgnoreError();
    }
    blocks_ = kv_.Allocate(tokens_.size());
  }

  std::shared_ptr<RestoreJob> Job(double prefill = 0, size_t batch_blocks = 1) {
    RestoreJob::Plan plan{.root = root_,
                          .tokens = tokens_,
                          .batch_blocks = batch_blocks,
                          .prefill_tokens_per_second = prefill};
    const auto keys = BlockKeys(root_, plan.tokens, kBlock);
    for (size_t i = 0; i < keys.size(); ++i) {
      const size_t begin = i * kBlock;
      plan.blocks.push_back(
          {.parent = i == 0 ? root_ : keys[i - 1],
           .key = keys[i],
           .tokens = std::span(plan.tokens)
                         .subspan(begin, std::min<size_t>(kBlock, tokens_.size() - begin)),
           .into = blocks_[i],
           .expected = Place::kHost});
    }
    return std::make_shared<RestoreJob>(
        RestoreJob::Tools{tier_, kv_.pool(), kv_metrics_, speeds_, nullptr, device_.get()},
        std::move(plan), [this](RestoreResult result) {
          ++done_;
          result_ = std::move(result);
          if (!over_.HasBeenNotified()) over_.Notify();
        });
  }
  double Plans(const std::string& decision) {
    return metrics_->counter("loopserve_restore_plans_total", "", {{"decision", decision}}).value();
  }

  const BlockKey root_ = RootKey({.model = "m"});
  const std::vector<common::TokenId> tokens_ = testing::RandomTokens(14, 3);
  const Codec& codec_;
  testing::KvPoolFixture kv_;
  testing::FaultyTier tier_{testing::MakeHostTier(1 << 20)};
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("test");
  KvMetrics kv_metrics_{*metrics_};
  SpeedMeter speeds_;
  std::unique_ptr<DeviceCodec> device_;  // null unless a test makes one
  std::vector<std::vector<std::byte>> records_;
  std::vector<BlockHandle> blocks_;
  int done_ = 0;
  RestoreResult result_;
  absl::Notification over_;
};

TEST_F(RestoreJobTest, AnyOrderBringsEverythingBack) {
  const auto job = Job();
  for (const size_t block : {2, 0, 3, 1}) {
    EXPECT_EQ(done_, 0);
    job->Load(block);
  }
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 14);
  EXPECT_EQ(result_.tokens_by_place[static_cast<size_t>(Place::kHost)], 14u);
  EXPECT_EQ(result_.short_reason, "");
  EXPECT_GT(result_.bytes, 14 * kv_.pool().shape().token_bytes());
  EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), 14);
  EXPECT_EQ(Plans("load"), 1);
}

TEST_F(RestoreJobTest, AMissingBlockEndsItThereAtOnce) {
  const PlaneKey key{BlockKeys(root_, tokens_, kBlock)[1], 0};
  ASSERT_OK(tier_.Erase({&key, 1}));
  const auto job = Job();
  job->Load(1);
  EXPECT_EQ(done_, 0);
  job->Load(0);
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 4);
  EXPECT_EQ(result_.short_reason, "miss");
  const int gets = tier_.gets();
  job->Load(2);
  EXPECT_EQ(tier_.gets(), gets) << "what comes after the end is not read";
  EXPECT_TRUE(kv_.IsUntouched(blocks_[2]));
}

TEST_F(RestoreJobTest, EveryFlippedByteEndsItAndWritesNothing) {
  for (size_t at = 0; at < records_[0].size(); ++at) {
    auto bytes = records_[0];
    bytes[at] ^= std::byte{0x10};
    const PlaneKey key{BlockKeys(root_, tokens_, kBlock)[0], 0};
    ASSERT_OK(tier_.Erase({&key, 1}));
    ASSERT_OK(tier_.Put(key, Share(bytes)));
    done_ = 0;
    RestoreJob::Plan plan{.root = root_, .tokens = tokens_};
    plan.blocks.push_back({.parent = root_,
                           .key = key.block,
                           .tokens = std::span(plan.tokens).first(kBlock),
                           .into = blocks_[0]});
    RestoreResult result;
    RestoreJob job({tier_, kv_.pool(), kv_metrics_, speeds_}, std::move(plan),
                   [&](RestoreResult r) { result = std::move(r); });
    job.Load(0);
    ASSERT_EQ(result.restored_tokens, 0) << at;
    ASSERT_EQ(result.short_reason, "damaged") << at;
    ASSERT_TRUE(kv_.IsUntouched(blocks_[0])) << at;
    EXPECT_FALSE(tier_.Contains(key)) << "damage is erased";
  }
}

TEST_F(RestoreJobTest, ABlockOfAnotherSequenceEndsIt) {
  const auto keys = BlockKeys(root_, tokens_, kBlock);
  const PlaneKey key{keys[1], 0};
  ASSERT_OK(tier_.Erase({&key, 1}));
  ASSERT_OK(tier_.Put(key, Share(records_[2])));  // sound, but swapped
  const auto job = Job();
  for (size_t i = 0; i < 4; ++i) job->Load(i);
  EXPECT_EQ(result_.restored_tokens, 4);
  EXPECT_EQ(result_.short_reason, "damaged");
  EXPECT_TRUE(kv_.IsUntouched(blocks_[1]));
}

TEST_F(RestoreJobTest, GivingUpKeepsThePrefixAndLateLoadsWriteNothing) {
  const auto job = Job();
  job->Load(0);
  tier_.HoldGets();
  {
    const auto thread = common::NamedThread("load", [&](std::stop_token) { job->Load(1); });
    tier_.AwaitWaiting(1);
    job->GiveUp("timeout");
    ASSERT_EQ(done_, 1);
    EXPECT_EQ(result_.restored_tokens, 4);
    EXPECT_EQ(result_.short_reason, "timeout");
    tier_.Release();
  }
  EXPECT_TRUE(kv_.IsUntouched(blocks_[1]));
  EXPECT_EQ(Plans("abandoned"), 1);
  EXPECT_EQ(Plans("load"), 0);
  EXPECT_LT(speeds_.speeds(absl::Now())[static_cast<size_t>(Place::kHost)], 1e12);
  job->GiveUp("timeout");
  EXPECT_EQ(done_, 1);
}

TEST_F(RestoreJobTest, TheDeadlineMovesWithTheLoad) {
  const auto job = Job(/*prefill=*/1);  // a token per second
  const absl::Time before = job->Deadline();
  job->Load(0);
  EXPECT_EQ(job->Deadline() - before, absl::Seconds(4));
  EXPECT_EQ(Job()->Deadline(), absl::InfiniteFuture());
  job->GiveUp("cancelled");
  EXPECT_EQ(job->Deadline(), absl::InfiniteFuture());
}

TEST_F(RestoreJobTest, TheWatchGivesUpWhatIsTooSlow) {
  RestoreWatch watch;
  const auto job = Job(/*prefill=*/1e6);
  tier_.HoldGets();
  const auto thread = common::NamedThread("load", [&](std::stop_token) { job->Load(0); });
  watch.Add(job);
  over_.WaitForNotification();
  EXPECT_EQ(result_.short_reason, "timeout");
  tier_.Release();
}

TEST_F(RestoreJobTest, TheWatchCancelsWhatIsLeft) {
  RestoreWatch watch;
  const auto job = Job();
  watch.Add(job);
  watch.CancelAll();
  EXPECT_EQ(done_, 1);
  EXPECT_EQ(result_.short_reason, "cancelled");
}

TEST_F(RestoreJobTest, ThreadsShareTheBatches) {
  const auto job = Job();
  EXPECT_EQ(job->num_batches(), 4u);
  EXPECT_EQ(Job(0, 3)->num_batches(), 2u);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back([&] { job->LoadBatches(); });
  }
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 14);
  EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), 14);
}

// Over memory whose copies run in the background.
class BackgroundRestoreJobTest : public RestoreJobTest {
 protected:
  BackgroundRestoreJobTest() : BackgroundRestoreJobTest(new testing::DeferredMemory) {}
  testing::DeferredMemory* memory_ = nullptr;

 private:
  explicit BackgroundRestoreJobTest(testing::DeferredMemory* memory)
      : RestoreJobTest(std::unique_ptr<Memory>(memory)), memory_(memory) {}
};

TEST_F(BackgroundRestoreJobTest, BatchesOfSeveralThreadsArrive) {
  for (const size_t batch : {1, 2, 3, 4}) {
    blocks_ = kv_.Allocate(tokens_.size());
    done_ = 0;
    const auto job = Job(0, batch);
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < 3; ++i) threads.emplace_back([&] { job->LoadBatches(); });
    }
    ASSERT_EQ(done_, 1);
    EXPECT_EQ(result_.restored_tokens, 14);
    EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), 14);
  }
}

TEST_F(BackgroundRestoreJobTest, ProvesButDoesNotReadWhileCopiesAreUnderWay) {
  const PlaneKey key{BlockKeys(root_, tokens_, kBlock)[2], 0};
  auto damaged = records_[2];
  damaged[200] ^= std::byte{1};
  ASSERT_OK(tier_.Erase({&key, 1}));
  ASSERT_OK(tier_.Put(key, Share(damaged)));
  int erased = 0;
  tier_.OnGet([&] { EXPECT_FALSE(memory_->busy()) << "a read may take long"; });
  tier_.OnErase([&] {
    ++erased;
    EXPECT_TRUE(memory_->busy()) << "the batch before should be under way";
  });
  const auto job = Job(0, /*batch_blocks=*/2);
  job->LoadBatches();
  EXPECT_EQ(erased, 1);
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 8);
  EXPECT_EQ(result_.short_reason, "damaged");
  EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), 8);
  EXPECT_TRUE(kv_.IsUntouched(blocks_[2]));
  EXPECT_TRUE(kv_.IsUntouched(blocks_[3]));
}

TEST_F(BackgroundRestoreJobTest, WhatIsGivenUpIsNotWritten) {
  const auto job = Job(0, /*batch_blocks=*/1);
  int gets = 0;
  // Given up while the second batch is read: the first is not under way yet.
  tier_.OnGet([&] {
    if (++gets == 2) job->GiveUp("timeout");
  });
  job->LoadBatches();
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 0);
  EXPECT_EQ(gets, 2);
  for (const BlockHandle& block : blocks_) EXPECT_TRUE(kv_.IsUntouched(block));
}

// Records of int8, which the memory decodes by itself.
class DeviceRestoreJobTest : public RestoreJobTest {
 protected:
  DeviceRestoreJobTest() : DeviceRestoreJobTest(new testing::DeferredMemory) {}

  // How many of blocks_, from the first on, hold what the host makes of their records.
  size_t Decoded() {
    const KvShape& shape = kv_.pool().shape();
    for (size_t i = 0; i < records_.size(); ++i) {
      std::vector<std::byte> want(shape.block_bytes()), have(want.size());
      const BlockRecord record = *ParseBlockRecord(records_[i]);
      EXPECT_OK(codec_.Decode(shape, record.header.num_tokens, {&record.payload, 1}, want));
      EXPECT_OK(kv_.pool().ReadBlock(blocks_[i].id(), have));
      if (have != want) return i;
    }
    return records_.size();
  }
  // Puts a sound record around what becomes of the block's payload.
  void Replace(size_t block, const std::function<void(std::vector<std::byte>&)>& change) {
    const BlockRecord record = *ParseBlockRecord(records_[block]);
    std::vector<std::byte> payload(record.payload.begin(), record.payload.end());
    change(payload);
    const PlaneKey key{record.header.key, 0};
    ASSERT_OK(tier_.Erase({&key, 1}));
    ASSERT_OK(tier_.Put(key, Share(EncodeBlockRecord(record.header, payload))));
  }
  bool InTier(size_t block) {
    return tier_.Contains({BlockKeys(root_, tokens_, kBlock)[block], 0});
  }
  static void NoScale(std::vector<std::byte>& payload) {
    const float scale = -1;
    std::memcpy(payload.data() + payload.size() / 12 * 11, &scale, sizeof scale);
  }

  testing::DeferredMemory* memory_ = nullptr;
  testing::HostBlockCoder* coder_ = nullptr;

 private:
  explicit DeviceRestoreJobTest(testing::DeferredMemory* memory)
      : RestoreJobTest(std::unique_ptr<Memory>(memory), "int8"),
        memory_(memory),
        coder_(&memory->CodeFor(codec_)) {
    device_ = DeviceCodec::Create(codec_, kv_.pool(), common::Logger::Null());
  }
};

TEST_F(DeviceRestoreJobTest, BatchesAreDecodedTogether) {
  for (const size_t batch : {1, 2, 3, 4}) {
    blocks_ = kv_.Allocate(tokens_.size());
    done_ = 0;
    const int before = coder_->decodes();
    const auto job = Job(0, batch);
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < 3; ++i) threads.emplace_back([&] { job->LoadBatches(); });
    }
    ASSERT_EQ(done_, 1);
    EXPECT_EQ(result_.restored_tokens, 14);
    EXPECT_EQ(Decoded(), 4u) << "zeros behind the last block's two tokens";
    const auto batches = static_cast<int>((4 + batch - 1) / batch);
    EXPECT_EQ(coder_->decodes() - before, batches * kv_.pool().ranks());
  }
}

TEST_F(DeviceRestoreJobTest, SingleBlocksToo) {
  const auto job = Job();
  for (const size_t block : {2, 0, 3, 1}) job->Load(block);
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 14);
  EXPECT_EQ(Decoded(), 4u);
}

TEST_F(DeviceRestoreJobTest, OnTheHostItIsTheSame) {
  device_.reset();
  Job(0, 4)->LoadBatches();
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 14);
  EXPECT_EQ(Decoded(), 4u);
  EXPECT_EQ(coder_->decodes(), 0);
}

TEST_F(DeviceRestoreJobTest, WhatTheDeviceCannotDecodeIsNotRestored) {
  for (const bool on_device : {true, false}) {
    if (!on_device) device_.reset();
    Replace(2, NoScale);
    blocks_ = kv_.Allocate(tokens_.size());
    done_ = 0;
    Job(0, /*batch_blocks=*/4)->LoadBatches();
    ASSERT_EQ(done_, 1);
    EXPECT_EQ(result_.restored_tokens, 8);
    EXPECT_EQ(result_.short_reason, "damaged");
    EXPECT_EQ(Decoded(), 2u);
    EXPECT_FALSE(InTier(2)) << "damage is erased";
    EXPECT_TRUE(InTier(1) && InTier(3));
  }
}

TEST_F(DeviceRestoreJobTest, APayloadOfAnotherLengthIsDamage) {
  for (const ptrdiff_t more : {-1, 1}) {
    Replace(1, [&](std::vector<std::byte>& payload) {
      payload.resize(static_cast<size_t>(std::ssize(payload) + more));
    });
    blocks_ = kv_.Allocate(tokens_.size());
    done_ = 0;
    Job(0, 2)->LoadBatches();
    ASSERT_EQ(done_, 1);
    EXPECT_EQ(result_.restored_tokens, 4);
    EXPECT_EQ(result_.short_reason, "damaged");
    EXPECT_TRUE(kv_.IsUntouched(blocks_[1]));
  }
}

TEST_F(DeviceRestoreJobTest, ACodecThatTheDeviceDoesNotKnowIsTheHosts) {
  const Codec& exact = *FindCodec("bf16");
  BlockHeader header = ParseBlockRecord(records_[0])->header;
  header.codec = exact.wire_id();
  const PlaneKey key{header.key, 0};
  ASSERT_OK(tier_.Erase({&key, 1}));
  ASSERT_OK(
      tier_.Put(key, Share(EncodeBlockRecord(header, kv_.KvOf(std::span(tokens_).first(kBlock))))));
  Job(0, 4)->LoadBatches();
  EXPECT_EQ(result_.restored_tokens, 14);
  EXPECT_EQ(kv_.Exact(tokens_, 0, {blocks_[0]}), kBlock);
}

TEST_F(DeviceRestoreJobTest, AnErrorOfTheDeviceEndsIt) {
  memory_->FailCopies(1, absl::InternalError("lost"));  // of the second rank
  Job(0, 4)->LoadBatches();
  ASSERT_EQ(done_, 1);
  EXPECT_EQ(result_.restored_tokens, 0);
  EXPECT_FALSE(memory_->busy()) << "nothing is under way when it is over";
}

}  // namespace
}  // namespace loopserve::kvstore
