#include "worker/backend/cuda/slot_ring.h"

#include <set>
#include <thread>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;

class SlotRingTest : public LaunchTest {
 protected:
  void SetUp() override {
    LaunchTest::SetUp();
    own_ = *Stream::Create();
    ring_ = *SlotRing::Create(2);
  }
  void TearDown() override {
    ring_.reset();
    own_ = Stream();
    LaunchTest::TearDown();
  }
  // Takes a slot and lets it fly.
  size_t Fly() {
    const size_t slot = *ring_->Take();
    EXPECT_OK(ring_->Fly(slot, own_, [this, slot] { landed_.push_back(slot); }));
    return slot;
  }

  Stream own_;
  std::unique_ptr<SlotRing> ring_;
  std::vector<size_t> landed_;
};

TEST_F(SlotRingTest, SlotsGoRoundAndLandBeforeTheyAreTakenAgain) {
  EXPECT_EQ(Fly(), 0u);
  EXPECT_EQ(Fly(), 1u);
  EXPECT_TRUE(landed_.empty()) << "nobody has needed them";
  EXPECT_EQ(Fly(), 0u);
  EXPECT_EQ(landed_, std::vector<size_t>{0});
  EXPECT_OK(ring_->Fence());
  EXPECT_EQ(std::multiset<size_t>(landed_.begin(), landed_.end()),
            (std::multiset<size_t>{0, 0, 1}));
  EXPECT_OK(ring_->Fence());
  EXPECT_EQ(landed_.size(), 3u) << "each lands once";
}

TEST_F(SlotRingTest, AFenceWaitsForItsOwnThread) {
  std::thread([&] { Fly(); }).join();
  EXPECT_OK(ring_->Fence());
  EXPECT_TRUE(landed_.empty());
  Fly();
  EXPECT_OK(ring_->Fence());
  EXPECT_EQ(landed_, std::vector<size_t>{1});
}

TEST_F(SlotRingTest, ATakenSlotIsWaitedFor) {
  const size_t taken = *ring_->Take();
  Fly();
  std::thread other([&] { EXPECT_EQ(*ring_->Take(), taken); });
  EXPECT_OK(ring_->Fly(taken, own_, [] {}));
  other.join();
}

TEST_F(SlotRingTest, AFailureIsToldToAllThatFollow) {
  Fly();
  fake::FailCall("cudaEventQuery", 1, cudaErrorIllegalAddress);
  EXPECT_THAT(ring_->Fence(), StatusIs(absl::StatusCode::kInternal));
  EXPECT_TRUE(landed_.empty()) << "what failed has nothing to be done on the host";
  EXPECT_THAT(ring_->Take().status(), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(ring_->Fence(), StatusIs(absl::StatusCode::kInternal));
}

TEST_F(SlotRingTest, WhatCannotFlyIsNotWaitedFor) {
  const size_t slot = *ring_->Take();
  fake::FailCall("cudaEventRecord", 1, cudaErrorIllegalAddress);
  EXPECT_THAT(ring_->Fly(slot, own_, [this] { landed_.push_back(7); }),
              StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(ring_->Fence(), StatusIs(absl::StatusCode::kInternal));
  EXPECT_TRUE(landed_.empty());
}

TEST_F(SlotRingTest, ErrorsOfTheRuntimeAreTold) {
  fake::FailCall("cudaEventCreateWithFlags", 2, cudaErrorIllegalAddress);
  EXPECT_THAT(SlotRing::Create(2).status(), StatusIs(absl::StatusCode::kInternal));
}

}  // namespace
}  // namespace loopserve::worker::cuda
