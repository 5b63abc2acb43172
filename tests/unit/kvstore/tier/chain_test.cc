#include "kvstore/tier/chain.h"

#include "kvstore/prefix_index.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace loopserve::kvstore {
namespace {

using testing::EntryOf;
using ::testing::HasSubstr;
using testing::KeyOf;
using testing::StatusIs;

// A host tier of three entries over a disk tier, both with faults on demand.
class ChainTest : public ::testing::Test {
 protected:
  ChainTest() {
    auto host = std::make_unique<testing::FaultyTier>(testing::MakeHostTier(3000));
    auto disk = std::make_unique<testing::FaultyTier>(testing::MakeDiskTier(dir_.path(), 1 << 20));
    host_ = host.get();
    disk_ = disk.get();
    std::vector<std::unique_ptr<Tier>> tiers;
    tiers.push_back(std::move(host));
    tiers.push_back(std::move(disk));
    chain_ = Chain::Create(std::move(tiers), 4000, kv_metrics_, common::Logger::Null());
  }
  void Flush() { ASSERT_OK(chain_->Flush(absl::InfiniteDuration())); }
  double Count(const std::string& name, const common::Labels& labels) {
    return metrics_->counter(name, "", labels).value();
  }

  testing::TempDir dir_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("test");
  KvMetrics kv_metrics_{*metrics_};
  testing::FaultyTier* host_ = nullptr;
  testing::FaultyTier* disk_ = nullptr;
  std::unique_ptr<Chain> chain_;
};

TEST_F(ChainTest, WritesReachEveryTier) {
  ASSERT_OK(chain_->Put(KeyOf(1), EntryOf(1)));
  Flush();
  EXPECT_TRUE(host_->Contains(KeyOf(1)));
  EXPECT_TRUE(disk_->Contains(KeyOf(1)));
  EXPECT_FALSE(chain_->WouldStore(KeyOf(1)));
  EXPECT_TRUE(chain_->WouldStore(KeyOf(2)));
  EXPECT_EQ(Count("loopserve_kv_transfer_bytes_total",
                  {{"src", "device"}, {"dst", "disk"}, {"op", "store"}}),
            1000);
}

TEST_F(ChainTest, ReadsComeUpAndTellTheirPlace) {
  for (uint64_t i = 0; i < 5; ++i) {
    ASSERT_OK(chain_->Put(KeyOf(i), EntryOf(i)));
    Flush();
  }
  EXPECT_EQ(chain_->Locate(KeyOf(0)), Place::kDisk);
  ASSERT_OK_AND_ASSIGN(Entry entry, chain_->Get(KeyOf(0)));
  EXPECT_EQ(entry.place, Place::kDisk);
  EXPECT_EQ(*entry.bytes, *EntryOf(0));
  EXPECT_EQ(chain_->Locate(KeyOf(0)), Place::kHost);
  ASSERT_OK_AND_ASSIGN(entry, chain_->Get(KeyOf(0)));
  EXPECT_EQ(entry.place, Place::kHost);
  EXPECT_THAT(chain_->Get(KeyOf(77)), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(ChainTest, DamageInOneTierIsNoLossWhileAnotherIsSound) {
  ASSERT_OK(chain_->Put(KeyOf(1), EntryOf(1)));
  Flush();
  host_->FailGets(absl::DataLossError("checksum"));
  ASSERT_OK_AND_ASSIGN(const Entry entry, chain_->Get(KeyOf(1)));
  EXPECT_EQ(entry.place, Place::kDisk);
  EXPECT_EQ(Count("loopserve_kv_errors_total", {{"tier", "host"}, {"kind", "checksum"}}), 1);
  disk_->FailGets(absl::UnavailableError("gone"));
  EXPECT_THAT(chain_->Get(KeyOf(1)), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(Count("loopserve_kv_errors_total", {{"tier", "disk"}, {"kind", "io"}}), 1);
}

TEST_F(ChainTest, ASlowDiskCostsNoWriterTimeAndDropsAreCounted) {
  disk_->HoldPuts();
  for (uint64_t i = 0; i < 6; ++i) EXPECT_OK(chain_->Put(KeyOf(i), EntryOf(i)));
  EXPECT_EQ(
      Count("loopserve_kv_store_dropped_total", {{"tier", "disk"}, {"reason", "backpressure"}}), 2);
  EXPECT_THAT(chain_->Flush(absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("disk")));
  // Evicted from the host and not on disk yet: it is read from the queue.
  EXPECT_FALSE(host_->Contains(KeyOf(0)));
  ASSERT_OK_AND_ASSIGN(const Entry entry, chain_->Get(KeyOf(0)));
  EXPECT_EQ(*entry.bytes, *EntryOf(0));
  disk_->Release();
  Flush();
}

TEST_F(ChainTest, WhatTheQueueRefusedIsKeptWhenTheHostLosesIt) {
  disk_->HoldPuts();
  for (uint64_t i = 0; i < 6; ++i) ASSERT_OK(chain_->Put(KeyOf(i), EntryOf(i)));
  disk_->Release();
  Flush();
  EXPECT_FALSE(disk_->Contains(KeyOf(4)));
  for (uint64_t i = 10; i < 13; ++i) {
    ASSERT_OK(chain_->Put(KeyOf(i), EntryOf(i)));
    Flush();
  }
  EXPECT_FALSE(host_->Contains(KeyOf(4)));
  EXPECT_TRUE(disk_->Contains(KeyOf(4)));
  EXPECT_GT(Count("loopserve_kv_transfer_bytes_total",
                  {{"src", "host"}, {"dst", "disk"}, {"op", "evict"}}),
            0);
  EXPECT_GT(Count("loopserve_kv_evictions_total", {{"tier", "host"}, {"reason", "capacity"}}), 0);
}

TEST_F(ChainTest, ADiskInTroubleIsCountedAndServiceGoesOn) {
  disk_->FailPuts(absl::UnavailableError("EIO"));
  ASSERT_OK(chain_->Put(KeyOf(1), EntryOf(1)));
  Flush();
  EXPECT_EQ(Count("loopserve_kv_errors_total", {{"tier", "disk"}, {"kind", "io"}}), 1);
  disk_->SetAccepting(false);
  ASSERT_OK(chain_->Put(KeyOf(2), EntryOf(2)));
  Flush();
  EXPECT_EQ(Count("loopserve_kv_errors_total", {{"tier", "disk"}, {"kind", "io"}}), 1);
  EXPECT_EQ(Count("loopserve_kv_store_dropped_total", {{"tier", "disk"}, {"reason", "full"}}), 2);
  EXPECT_OK(chain_->Get(KeyOf(2)));
  EXPECT_FALSE(chain_->WouldStore(KeyOf(2)));
}

TEST_F(ChainTest, EraseReachesQueuesAndTiers) {
  disk_->HoldPuts();
  for (uint64_t i = 0; i < 3; ++i) ASSERT_OK(chain_->Put(KeyOf(i), EntryOf(i)));
  disk_->AwaitWaiting(1);
  const PlaneKey keys[] = {KeyOf(0), KeyOf(1)};
  ASSERT_OK(chain_->Erase(keys));
  disk_->Release();
  Flush();
  // The write that was under way is undone by the queue's thread after it: a later write is behind.
  ASSERT_OK(chain_->Put(KeyOf(5), EntryOf(5)));
  Flush();
  EXPECT_FALSE(chain_->Contains(KeyOf(0)));
  EXPECT_FALSE(chain_->Contains(KeyOf(1)));
  EXPECT_TRUE(disk_->Contains(KeyOf(2)));
  EXPECT_EQ(Count("loopserve_kv_evictions_total", {{"tier", "host"}, {"reason", "delete"}}), 2);
}

TEST_F(ChainTest, ParkLeavesTheHostOnly) {
  for (uint64_t i = 0; i < 2; ++i) ASSERT_OK(chain_->Put(KeyOf(i), EntryOf(i)));
  Flush();
  const PlaneKey keys[] = {KeyOf(0), KeyOf(1), KeyOf(9)};
  chain_->Park(keys);
  EXPECT_EQ(host_->usage().entries, 0u);
  EXPECT_OK(chain_->Get(KeyOf(0)));
}

TEST_F(ChainTest, ParkKeepsWhatNobodyElseTakes) {
  disk_->SetAccepting(false);
  ASSERT_OK(chain_->Put(KeyOf(0), EntryOf(0)));
  const PlaneKey keys[] = {KeyOf(0)};
  chain_->Park(keys);
  EXPECT_TRUE(host_->Contains(KeyOf(0)));
}

TEST_F(ChainTest, LookupSeesAllTiersAsOne) {
  const BlockKey root = RootKey({.model = "m"});
  const auto tokens = testing::RandomTokens(14, 1);
  const auto keys = BlockKeys(root, tokens, 4);
  for (const BlockKey& key : keys) {
    ASSERT_OK(chain_->Put({key, 0}, EntryOf(1)));
    Flush();
  }
  EXPECT_EQ(host_->usage().entries, 3u);
  EXPECT_EQ(*chain_->Lookup(root, tokens, 4), 14);
}

TEST_F(ChainTest, TooLargeForTheHostStillReachesTheDisk) {
  ASSERT_OK(chain_->Put(KeyOf(1), EntryOf(1, 3500)));
  Flush();
  EXPECT_FALSE(host_->Contains(KeyOf(1)));
  ASSERT_OK_AND_ASSIGN(const Entry entry, chain_->Get(KeyOf(1)));
  EXPECT_EQ(entry.place, Place::kDisk);
}

TEST_F(ChainTest, UsageIsByPlace) {
  ASSERT_OK(chain_->Put(KeyOf(1), EntryOf(1)));
  Flush();
  const UsageByPlace usage = chain_->usage_by_place();
  EXPECT_EQ(usage[static_cast<size_t>(Place::kHost)].used_bytes, 1000u);
  EXPECT_EQ(usage[static_cast<size_t>(Place::kDisk)].used_bytes, 1000u);
  EXPECT_EQ(usage[static_cast<size_t>(Place::kDisk)].capacity_bytes, 1u << 20);
  EXPECT_EQ(usage[static_cast<size_t>(Place::kRemote)].capacity_bytes, 0u);
}

}  // namespace
}  // namespace loopserve::kvstore
