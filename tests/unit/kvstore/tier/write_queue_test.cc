#include "kvstore/tier/write_queue.h"

#include <atomic>

#include "tests/support/faulty_tier.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using testing::EntryOf;
using testing::KeyOf;

class WriteQueueTest : public ::testing::Test {
 protected:
  testing::FaultyTier tier_{testing::MakeHostTier(1 << 20)};
  std::atomic<int> written_ = 0;
  std::atomic<int> failed_ = 0;
  WriteQueue queue_{tier_, 5000, [this](const WriteQueue::Written& w) {
                      ++(w.status.ok() ? written_ : failed_);
                    }};
  static constexpr auto kSave = WriteQueue::Origin::kSave;
};

TEST_F(WriteQueueTest, WritesInTheBackground) {
  for (uint64_t i = 0; i < 5; ++i) EXPECT_TRUE(queue_.Offer(KeyOf(i), EntryOf(i), kSave));
  EXPECT_TRUE(queue_.Drain(absl::InfiniteFuture()));
  for (uint64_t i = 0; i < 5; ++i) EXPECT_TRUE(tier_.Contains(KeyOf(i)));
}

TEST_F(WriteQueueTest, RefusesBeyondItsBytesAndReadsWhatWaits) {
  tier_.HoldPuts();
  for (uint64_t i = 0; i < 5; ++i) EXPECT_TRUE(queue_.Offer(KeyOf(i), EntryOf(i), kSave));
  EXPECT_FALSE(queue_.Offer(KeyOf(9), EntryOf(9), kSave));
  EXPECT_TRUE(queue_.Offer(KeyOf(3), EntryOf(3), kSave)) << "it waits already";
  for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(*queue_.Find(KeyOf(i)), *EntryOf(i));
  EXPECT_EQ(queue_.Find(KeyOf(9)), nullptr);
  EXPECT_FALSE(queue_.Drain(absl::Now()));
  tier_.Release();
  EXPECT_TRUE(queue_.Drain(absl::InfiniteFuture()));
  EXPECT_EQ(queue_.Find(KeyOf(0)), nullptr);
}

TEST_F(WriteQueueTest, CancelledEntriesDoNotArrive) {
  tier_.HoldPuts();
  for (uint64_t i = 0; i < 3; ++i) EXPECT_TRUE(queue_.Offer(KeyOf(i), EntryOf(i), kSave));
  tier_.AwaitWaiting(1);
  const PlaneKey keys[] = {KeyOf(0), KeyOf(2)};  // the one being written, and one that waits
  queue_.Cancel(keys);
  EXPECT_TRUE(queue_.Offer(KeyOf(4), EntryOf(4), kSave));
  tier_.Release();
  EXPECT_TRUE(queue_.Drain(absl::InfiniteFuture()));
  EXPECT_FALSE(tier_.Contains(KeyOf(0)));
  EXPECT_TRUE(tier_.Contains(KeyOf(1)));
  EXPECT_FALSE(tier_.Contains(KeyOf(2)));
  EXPECT_TRUE(tier_.Contains(KeyOf(4)));
}

TEST_F(WriteQueueTest, FailuresAreReportedAndTheQueueGoesOn) {
  tier_.FailPuts(absl::UnavailableError("gone"));
  EXPECT_TRUE(queue_.Offer(KeyOf(1), EntryOf(1), kSave));
  EXPECT_TRUE(queue_.Drain(absl::InfiniteFuture()));
  EXPECT_EQ(failed_, 1);
  tier_.FailPuts(absl::OkStatus());
  EXPECT_TRUE(queue_.Offer(KeyOf(1), EntryOf(1), kSave));
  EXPECT_TRUE(queue_.Drain(absl::InfiniteFuture()));
  EXPECT_EQ(written_, 1);
}

TEST(WriteQueueEndTest, EndsWithEntriesWaiting) {
  testing::FaultyTier tier(testing::MakeHostTier(1 << 20));
  tier.HoldPuts();
  {
    WriteQueue queue(tier, 1 << 20, nullptr);
    for (uint64_t i = 0; i < 5; ++i) {
      queue.Offer(KeyOf(i), EntryOf(i), WriteQueue::Origin::kSave);
    }
    tier.AwaitWaiting(1);
    tier.Release();
  }
  EXPECT_LE(tier.puts(), 5);
}

}  // namespace
}  // namespace loopserve::kvstore
