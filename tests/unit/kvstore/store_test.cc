#include "kvstore/store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "absl/synchronization/notification.h"
#include "kvstore/prefix_index.h"
#include "tests/support/deferred_memory.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/patience.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace loopserve::kvstore {
namespace {

using common::TokenId;
using ::testing::HasSubstr;
using testing::StatusIs;

constexpr absl::Duration kLong = absl::Minutes(1);

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() { Open(); }

  // As a new process would: device and host memory are empty.
  void Open() {
    store_.reset();
    auto store = CreateKvStore(options_, kv_.pool(), kv_metrics_, common::Logger::Null());
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  absl::Status Save(std::span<const TokenId> tokens, const BlockKey& root) {
    absl::Notification over;
    absl::Status status;
    store_->Save({root, {tokens.begin(), tokens.end()}, kv_.Compute(tokens)}, [&](absl::Status s) {
      status = std::move(s);
      over.Notify();
    });
    over.WaitForNotification();
    return status;
  }
  absl::Status Save(std::span<const TokenId> tokens) { return Save(tokens, root_); }

  RestoreResult Restore(std::span<const TokenId> tokens, int64_t from, int64_t to,
                        std::vector<BlockHandle> blocks, double prefill = 0) {
    absl::Notification over;
    RestoreResult result;
    store_->Restore({.root = root_,
                     .tokens = {tokens.begin(), tokens.end()},
                     .from_token = from,
                     .to_token = to,
                     .blocks = std::move(blocks),
                     .prefill_tokens_per_second = prefill},
                    [&](RestoreResult r) {
                      result = std::move(r);
                      over.Notify();
                    });
    over.WaitForNotification();
    return result;
  }
  // Looks up and restores all of it; the blocks are in blocks_.
  RestoreResult RestoreAll(std::span<const TokenId> tokens) {
    const int64_t to = store_->Lookup(root_, tokens, 0);
    blocks_ = kv_.Allocate(static_cast<size_t>(to));
    if (to == 0) return {};
    return Restore(tokens, 0, to, blocks_);
  }
  bool HostEntriesBecome(uint64_t entries) {
    return testing::Becomes(
        [&] { return store_->usage()[static_cast<size_t>(Place::kHost)].entries == entries; });
  }
  double Count(const std::string& name, const common::Labels& labels) {
    return metrics_->counter(name, "", labels).value();
  }

  testing::TempDir dir_;
  StoreOptions options_{
      .host_bytes = 1 << 20, .disk_directory = dir_.path(), .disk_bytes = 1 << 22};
  const BlockKey root_ = RootKey({.model = "m"});
  const std::vector<TokenId> tokens_ = testing::RandomTokens(30, 7);
  testing::KvPoolFixture kv_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("test");
  KvMetrics kv_metrics_{*metrics_};
  std::unique_ptr<KvStore> store_;
  std::vector<BlockHandle> blocks_;
};

TEST_F(StoreTest, WhatIsSavedComesBackBitForBit) {
  ASSERT_OK(Save(tokens_));
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 30);
  const RestoreResult result = RestoreAll(tokens_);
  EXPECT_EQ(result.restored_tokens, 30);
  EXPECT_EQ(result.tokens_by_place[static_cast<size_t>(Place::kHost)], 30u);
  EXPECT_EQ(result.short_reason, "");
  EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), 30);
}

TEST_F(StoreTest, BlocksAreLetGoOnceTheyAreEncoded) {
  const uint32_t before = kv_.pool().free_blocks();
  ASSERT_OK(Save(tokens_));
  EXPECT_EQ(kv_.pool().free_blocks(), before);
}

TEST_F(StoreTest, ALaterTurnFindsTheEarlierOnes) {
  ASSERT_OK(Save(std::span(tokens_).first(10)));
  ASSERT_OK(Save(std::span(tokens_).first(19)));
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 19);
  EXPECT_EQ(store_->Lookup(root_, tokens_, 8), 19);
  EXPECT_EQ(store_->Lookup(root_, tokens_, 20), 20) << "nothing beyond what the caller has";
  EXPECT_EQ(store_->Lookup(root_, std::span(tokens_).first(11), 0), 10) << "a rewind";
  std::vector<TokenId> fork(tokens_.begin(), tokens_.begin() + 12);
  fork.push_back(5);
  EXPECT_EQ(store_->Lookup(root_, fork, 0), 12);
}

TEST_F(StoreTest, AMiddlePartIsRestoredBehindWhatIsThere) {
  ASSERT_OK(Save(tokens_));
  const auto blocks = kv_.Allocate(22);
  const RestoreResult result = Restore(tokens_, 8, 30, blocks);
  EXPECT_EQ(result.restored_tokens, 22);
  EXPECT_EQ(kv_.Exact(tokens_, 8, blocks), 22);
}

TEST_F(StoreTest, NamespacesDoNotShare) {
  ASSERT_OK(Save(tokens_, RootKey({.model = "m", .cache_namespace = "other"})));
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 0);
}

TEST_F(StoreTest, ANewProcessRestoresFromDisk) {
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  Open();
  const RestoreResult result = RestoreAll(tokens_);
  EXPECT_EQ(result.restored_tokens, 30);
  EXPECT_EQ(result.tokens_by_place[static_cast<size_t>(Place::kDisk)], 30u);
  EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), 30);
  EXPECT_EQ(RestoreAll(tokens_).tokens_by_place[static_cast<size_t>(Place::kHost)], 30u);
}

TEST_F(StoreTest, OtherRanksReadTheSameBlocks) {
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  store_.reset();
  const auto memory = CreateHostMemory();
  const auto pool = KvBlockPool::Create(testing::SmallShape(), 16, {{memory.get(), 0, 3}}).value();
  const auto store = CreateKvStore(options_, *pool, kv_metrics_, common::Logger::Null()).value();
  std::vector<BlockHandle> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(*pool->Allocate());
  absl::Notification over;
  store->Restore({.root = root_, .tokens = tokens_, .to_token = 30, .blocks = blocks},
                 [&](const RestoreResult& result) {
                   EXPECT_EQ(result.restored_tokens, 30);
                   over.Notify();
                 });
  over.WaitForNotification();
  std::vector<std::byte> logical(pool->shape().block_bytes());
  ASSERT_OK(pool->ReadBlock(blocks[2].id(), logical));
  EXPECT_EQ(logical, kv_.KvOf(std::span(tokens_).first(12)));
}

TEST_F(StoreTest, DamagedFilesCostTimeAndNeverWriteWrongBytes) {
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  store_.reset();
  for (const auto& file : std::filesystem::directory_iterator(dir_.path())) {
    if (file.path().extension() != ".kv") continue;
    std::fstream bytes(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(static_cast<std::streamoff>(file.file_size() / 2));
    bytes.put('!');
    bytes.put('?');
  }
  Open();
  const RestoreResult result = RestoreAll(tokens_);
  EXPECT_LT(result.restored_tokens, 30);
  EXPECT_EQ(result.short_reason, "damaged");
  EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), result.restored_tokens);
  EXPECT_EQ(Count("loopserve_kv_errors_total", {{"tier", "disk"}, {"kind", "checksum"}}), 1);
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  EXPECT_EQ(RestoreAll(tokens_).restored_tokens, 30) << "saving again mends it";
}

TEST_F(StoreTest, ForgetReachesEveryTierAndEveryTail) {
  for (const size_t length : {7, 13, 30}) ASSERT_OK(Save(std::span(tokens_).first(length)));
  ASSERT_OK(store_->Flush(kLong));
  ASSERT_OK(store_->Forget(root_, tokens_));
  EXPECT_EQ(store_->usage()[static_cast<size_t>(Place::kHost)].entries, 0u);
  EXPECT_EQ(store_->usage()[static_cast<size_t>(Place::kDisk)].entries, 0u);
  Open();
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 0);
}

TEST_F(StoreTest, ParkedAndPrefetched) {
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  store_->Park(root_, tokens_);
  ASSERT_TRUE(HostEntriesBecome(0));
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 30);
  store_->Prefetch(root_, tokens_);
  ASSERT_TRUE(HostEntriesBecome(8));
  EXPECT_EQ(RestoreAll(tokens_).tokens_by_place[static_cast<size_t>(Place::kHost)], 30u);
}

// However long the parking takes: the prefetch finds what it has moved away.
TEST_F(StoreTest, WhatIsParkedAndThenPrefetchedIsInHostMemory) {
  std::vector<std::unique_ptr<Tier>> tiers;
  tiers.push_back(testing::MakeHostTier(1 << 20));
  const testing::TempDir dir;
  auto disk = std::make_unique<testing::FaultyTier>(testing::MakeDiskTier(dir.path(), 1 << 22));
  testing::FaultyTier& slow = *disk;
  tiers.push_back(std::move(disk));
  store_.reset();
  store_ = *CreateKvStoreOver(std::move(tiers), options_, kv_.pool(), kv_metrics_,
                              common::Logger::Null());
  slow.SetAccepting(false);  // so that parking has something to write
  ASSERT_OK(Save(tokens_));
  slow.SetAccepting(true);
  slow.HoldPuts();
  store_->Park(root_, tokens_);
  slow.AwaitWaiting(1);
  store_->Prefetch(root_, tokens_);
  absl::SleepFor(absl::Milliseconds(100));  // in which it would find everything in its place
  slow.Release();
  ASSERT_TRUE(testing::Becomes([this] {
    return Count("loopserve_kv_transfer_bytes_total",
                 {{"src", "disk"}, {"dst", "host"}, {"op", "prefetch"}}) > 0;
  }));
  EXPECT_TRUE(HostEntriesBecome(8));
}

TEST_F(StoreTest, RequestsThatDoNotFitAreRefused) {
  EXPECT_EQ(Restore(tokens_, 1, 30, {}).restored_tokens, 0);
  EXPECT_EQ(Restore(tokens_, 0, 31, kv_.Allocate(31)).restored_tokens, 0);
  EXPECT_EQ(Restore(tokens_, 0, 30, kv_.Allocate(4)).restored_tokens, 0);
  absl::Status status;
  store_->Save({root_, tokens_, kv_.Allocate(4)}, [&](absl::Status s) { status = s; });
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(StoreTest, UsageShowsInTheMetrics) {
  ASSERT_OK(Save(tokens_));
  const uint64_t used = store_->usage()[static_cast<size_t>(Place::kHost)].used_bytes;
  EXPECT_GT(used, 0u);
  EXPECT_THAT(metrics_->Render(),
              HasSubstr(absl::StrCat("loopserve_kv_used_bytes{plane=\"0\",tier=\"host\"} ", used)));
}

TEST_F(StoreTest, UnknownCodecsAndEmptyStoresAreRefused) {
  StoreOptions options;
  options.codec = "int3";
  EXPECT_THAT(CreateKvStore(options, kv_.pool(), kv_metrics_, common::Logger::Null()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bf16 int8")));
  options = {.host_bytes = 0};
  EXPECT_THAT(CreateKvStore(options, kv_.pool(), kv_metrics_, common::Logger::Null()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(CreateKvStore(options_, kv_.pool(), kv_metrics_, common::Logger::Null()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("in use")));
}

TEST_F(StoreTest, ACodecThatDoesNotStoreTheDtypeIsRefused) {
  const auto memory = CreateHostMemory();
  KvShape shape = testing::SmallShape();
  shape.dtype = KvDtype::kInt8;
  const auto pool = KvBlockPool::Create(shape, 4, {{memory.get(), 0, 3}}).value();
  StoreOptions options{.codec = "bf16"};
  EXPECT_THAT(CreateKvStore(options, *pool, kv_metrics_, common::Logger::Null()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("codec bf16 stores no blocks of int8")));
  options.codec = "int8";
  EXPECT_OK(CreateKvStore(options, *pool, kv_metrics_, common::Logger::Null()));
}

TEST_F(StoreTest, CodecsMayChangeBetweenProcesses) {
  ASSERT_OK(Save(std::span(tokens_).first(12)));
  ASSERT_OK(store_->Flush(kLong));
  options_.codec = "int8";
  Open();
  ASSERT_OK(Save(tokens_));
  const RestoreResult result = RestoreAll(tokens_);
  EXPECT_EQ(result.restored_tokens, 30);
  EXPECT_EQ(kv_.Exact(tokens_, 0, blocks_), 12) << "what was saved as bf16 is exact";
}

// Over a host tier and a disk tier with faults on demand.
class FaultyStoreTest : public StoreTest {
 protected:
  FaultyStoreTest() {
    store_.reset();
    auto host = std::make_unique<testing::FaultyTier>(testing::MakeHostTier(1 << 20));
    auto disk = std::make_unique<testing::FaultyTier>(testing::MakeDiskTier(dir_.path(), 1 << 22));
    host_ = host.get();
    disk_ = disk.get();
    std::vector<std::unique_ptr<Tier>> tiers;
    tiers.push_back(std::move(host));
    tiers.push_back(std::move(disk));
    store_ = CreateKvStoreOver(std::move(tiers), options_, kv_.pool(), kv_metrics_,
                               common::Logger::Null())
                 .value();
  }
  testing::FaultyTier* host_ = nullptr;
  testing::FaultyTier* disk_ = nullptr;
};

TEST_F(FaultyStoreTest, ADiskThatHangsIsGivenUpAndHostLoadsGoOn) {
  const auto other = testing::RandomTokens(8, 99);
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(Save(other));
  ASSERT_OK(store_->Flush(kLong));
  const auto keys = BlockKeys(root_, tokens_, 4);
  for (size_t i = 3; i < keys.size(); ++i) {
    const PlaneKey key{keys[i], 0};
    ASSERT_OK(host_->Erase({&key, 1}));
  }
  disk_->HoldGets();
  auto blocks = kv_.Allocate(30);
  const RestoreResult result = Restore(tokens_, 0, 30, blocks, /*prefill=*/10);
  EXPECT_EQ(result.restored_tokens, 12);
  EXPECT_EQ(result.short_reason, "timeout");
  EXPECT_EQ(RestoreAll(other).restored_tokens, 8) << "from host memory, while the disk hangs";
  EXPECT_EQ(Restore(tokens_, 0, 30, blocks, 10).short_reason, "cheaper")
      << "the disk is known to be slow";
  EXPECT_EQ(Count("loopserve_restore_plans_total", {{"decision", "mixed"}}), 1);
  disk_->Release();
}

TEST_F(FaultyStoreTest, WhatIsForgottenWhileItIsSavedStaysGone) {
  const auto other = testing::RandomTokens(8, 99);
  std::atomic<int> over = 0;
  absl::Status statuses[3];
  const auto save = [&](std::span<const TokenId> tokens, int i) {
    store_->Save({root_, {tokens.begin(), tokens.end()}, kv_.Compute(tokens)},
                 [&, i](absl::Status status) {
                   statuses[i] = std::move(status);
                   ++over;
                 });
  };
  host_->HoldPuts();
  save(std::span(tokens_).first(10), 0);
  host_->AwaitWaiting(1);  // its first block is being written
  save(tokens_, 1);
  save(other, 2);
  ASSERT_OK(store_->Forget(root_, tokens_));
  host_->Release();
  ASSERT_OK(store_->Flush(kLong));
  EXPECT_EQ(over, 3);
  EXPECT_THAT(statuses[0], StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(statuses[1], StatusIs(absl::StatusCode::kCancelled));
  EXPECT_OK(statuses[2]);
  EXPECT_EQ(store_->usage()[static_cast<size_t>(Place::kHost)].entries, 2u);
  EXPECT_EQ(store_->usage()[static_cast<size_t>(Place::kDisk)].entries, 2u);
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 0);
  EXPECT_EQ(store_->Lookup(root_, other, 0), 8) << "another session's";
  ASSERT_OK(Save(tokens_));
  EXPECT_EQ(store_->Lookup(root_, tokens_, 0), 30) << "a later save counts again";
}

TEST_F(FaultyStoreTest, EverythingSlowIsComputed) {
  ASSERT_OK(Save(tokens_));
  auto blocks = kv_.Allocate(30);
  EXPECT_EQ(Restore(tokens_, 0, 30, blocks, 1).restored_tokens, 30);
  const RestoreResult result = Restore(tokens_, 0, 30, blocks, 1e12);
  EXPECT_EQ(result.restored_tokens, 0);
  EXPECT_EQ(result.short_reason, "cheaper");
  EXPECT_EQ(Count("loopserve_restore_plans_total", {{"decision", "recompute"}}), 1);
}

TEST_F(FaultyStoreTest, ClosingEndsWhatIsUnderWay) {
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  host_->HoldGets();
  std::atomic<int> done = 0;
  store_->Restore({.root = root_, .tokens = tokens_, .to_token = 30, .blocks = kv_.Allocate(30)},
                  [&](const RestoreResult& result) {
                    EXPECT_EQ(result.short_reason, "cancelled");
                    ++done;
                    host_->Release();
                  });
  host_->AwaitWaiting(1);
  store_.reset();
  EXPECT_EQ(done, 1);
}

TEST_F(FaultyStoreTest, ATierThatFailsCostsNothingElse) {
  disk_->FailPuts(absl::ResourceExhaustedError("full"));
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  EXPECT_EQ(RestoreAll(tokens_).restored_tokens, 30);
  EXPECT_EQ(Count("loopserve_kv_store_dropped_total", {{"tier", "disk"}, {"reason", "full"}}), 8);
}

TEST_F(FaultyStoreTest, ATierThatMissedABlockGetsTheSameBytesLater) {
  disk_->FailPuts(absl::UnavailableError("EIO"));
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  disk_->FailPuts(absl::OkStatus());
  const PlaneKey key{BlockKeys(root_, tokens_, 4)[2], 0};
  EXPECT_FALSE(disk_->Contains(key));
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  EXPECT_EQ(*disk_->Get(key)->bytes, *host_->Get(key)->bytes);
}

TEST_F(FaultyStoreTest, ABlockIsEncodedOnce) {
  ASSERT_OK(Save(tokens_));
  ASSERT_OK(store_->Flush(kLong));
  const int puts = host_->puts();
  ASSERT_OK(Save(tokens_));
  EXPECT_EQ(host_->puts(), puts);
}

// A pool on a device that codes blocks by itself, or leaves that to the host, and a store over it.
class Coding {
 public:
  Coding(bool on_device, const std::vector<int32_t>& heads_of_ranks, const std::string& directory)
      : memory_(new testing::DeferredMemory),
        kv_(64, testing::SmallShape(), std::unique_ptr<Memory>(memory_), heads_of_ranks) {
    if (on_device) coder_ = &memory_->CodeFor(codec_);
    store_ = *CreateKvStore({.host_bytes = 0, .disk_directory = directory, .codec = "int8"},
                            kv_.pool(), kv_metrics_, common::Logger::Null());
  }

  void Save(const std::vector<TokenId>& tokens) {
    absl::Notification over;
    store_->Save({root_, tokens, kv_.Compute(tokens)}, [&](absl::Status status) {
      EXPECT_OK(status);
      over.Notify();
    });
    over.WaitForNotification();
    EXPECT_OK(store_->Flush(kLong));
  }
  // Expects all that was saved, as near as the codec keeps it.
  void Restore(const std::vector<TokenId>& tokens) {
    const auto to = static_cast<int64_t>(tokens.size());
    EXPECT_EQ(store_->Lookup(root_, tokens, 0), to);
    const std::vector<BlockHandle> blocks = kv_.Allocate(tokens.size());
    absl::Notification over;
    store_->Restore({.root = root_, .tokens = tokens, .to_token = to, .blocks = blocks},
                    [&](RestoreResult result) {
                      EXPECT_EQ(result.restored_tokens, to) << result.short_reason;
                      over.Notify();
                    });
    over.WaitForNotification();
    for (size_t i = 0; i < blocks.size(); ++i) {
      const std::span so_far = std::span(tokens).first(std::min(tokens.size(), (i + 1) * 4));
      std::vector<std::byte> have(kv_.pool().shape().block_bytes());
      ASSERT_OK(kv_.pool().ReadBlock(blocks[i].id(), have));
      EXPECT_EQ(have, Kept(kv_.KvOf(so_far), static_cast<int32_t>(so_far.size() - i * 4))) << i;
    }
  }
  int coded() const { return coder_ == nullptr ? 0 : coder_->encodes() + coder_->decodes(); }

 private:
  // What the host's codec makes of what it made of `block`.
  std::vector<std::byte> Kept(ByteSpan block, int32_t tokens) const {
    const KvShape& shape = kv_.pool().shape();
    std::vector<std::byte> kept(shape.block_bytes());
    EXPECT_OK(codec_.Encode(shape, tokens, block, [&](size_t, ByteSpan payload) {
      return codec_.Decode(shape, tokens, {&payload, 1}, kept);
    }));
    return kept;
  }

  const Codec& codec_ = *FindCodec("int8");
  const BlockKey root_ = RootKey({.model = "m"});
  testing::DeferredMemory* const memory_;
  mutable testing::KvPoolFixture kv_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("test");
  KvMetrics kv_metrics_{*metrics_};
  testing::HostBlockCoder* coder_ = nullptr;
  std::unique_ptr<KvStore> store_;
};

// Saved by a device and restored by a host, and the other way round, over other ranks.
TEST(DeviceCodecInStoreTest, KeepsWhatTheHostKeeps) {
  for (const std::vector<int32_t>& ranks :
       {std::vector<int32_t>{3}, std::vector<int32_t>{1, 1, 1}}) {
    for (const bool device_saves : {true, false}) {
      for (const size_t count : {1u, 4u, 31u, 130u}) {
        const testing::TempDir dir;
        const std::vector<TokenId> tokens = testing::RandomTokens(count, 11);
        {
          Coding saving(device_saves, ranks, dir.path());
          saving.Save(tokens);
          EXPECT_EQ(saving.coded() > 0, device_saves);
        }
        Coding restoring(!device_saves, {1, 2}, dir.path());
        restoring.Restore(tokens);
        EXPECT_EQ(restoring.coded() > 0, !device_saves);
      }
    }
  }
}

}  // namespace
}  // namespace loopserve::kvstore
