#include "kvstore/restore_plan.h"

#include <gtest/gtest.h>

namespace loopserve::kvstore {
namespace {

constexpr absl::Time kNow = absl::UnixEpoch();
constexpr double kPrefill = 1000;  // tokens per second

LoadSpeeds Speeds(double host, double disk) {
  LoadSpeeds speeds{};
  speeds[static_cast<size_t>(Place::kHost)] = host;
  speeds[static_cast<size_t>(Place::kDisk)] = disk;
  return speeds;
}

// 1000 tokens, a megabyte, in each place: one second to compute.
const StoredRun kRuns[] = {{Place::kHost, 1000, 1'000'000}, {Place::kDisk, 1000, 1'000'000}};

TEST(RestorePlanTest, FastPlacesAreLoaded) {
  const RestorePlan plan = PlanRestore(kRuns, Speeds(1e9, 1e8), kPrefill);
  EXPECT_EQ(plan.decision, RestoreDecision::kLoad);
  EXPECT_EQ(plan.load_runs, 2u);
}

TEST(RestorePlanTest, ASlowPlaceBehindAFastOneIsComputed) {
  const RestorePlan plan = PlanRestore(kRuns, Speeds(1e9, 1e5), kPrefill);
  EXPECT_EQ(plan.decision, RestoreDecision::kMixed);
  EXPECT_EQ(plan.load_runs, 1u);
}

TEST(RestorePlanTest, SlowerThanComputingIsComputed) {
  const RestorePlan plan = PlanRestore(kRuns, Speeds(1e5, 1e5), kPrefill);
  EXPECT_EQ(plan.decision, RestoreDecision::kRecompute);
  EXPECT_EQ(plan.load_runs, 0u);
}

TEST(RestorePlanTest, ASlowHeadIsWorthAFastTail) {
  const StoredRun runs[] = {{Place::kDisk, 100, 200'000}, {Place::kHost, 1000, 1'000'000}};
  EXPECT_EQ(PlanRestore(runs, Speeds(1e9, 1e6), kPrefill).load_runs, 2u);
  EXPECT_EQ(PlanRestore(runs, Speeds(1e9, 1e5), kPrefill).load_runs, 0u);
}

TEST(RestorePlanTest, WhatIsNotMeasuredIsTried) {
  EXPECT_EQ(PlanRestore(kRuns, {}, kPrefill).decision, RestoreDecision::kLoad);
  EXPECT_EQ(PlanRestore(kRuns, Speeds(1, 1), 0).decision, RestoreDecision::kLoad);
}

TEST(RestorePlanTest, TheAllowanceGrowsWithWhatWasLoaded) {
  EXPECT_EQ(LoadAllowance(0, 2000, kPrefill), absl::Milliseconds(100));
  EXPECT_EQ(LoadAllowance(500, 2000, kPrefill), absl::Milliseconds(600));
  EXPECT_EQ(LoadAllowance(0, 2000, 0), absl::InfiniteDuration());
}

TEST(SpeedMeterTest, RecentMeasurementsWeighMost) {
  SpeedMeter meter;
  EXPECT_EQ(meter.speeds(kNow)[1], 0);
  absl::Time now = kNow;
  meter.Measured(Place::kHost, 1000, absl::Seconds(1), now);
  EXPECT_DOUBLE_EQ(meter.speeds(now)[1], 1000);
  for (int i = 0; i < 20; ++i) {
    meter.Measured(Place::kHost, 4000, absl::Seconds(1), now += absl::Seconds(1));
  }
  EXPECT_NEAR(meter.speeds(now)[1], 4000, 1);
  EXPECT_EQ(meter.speeds(now)[2], 0);
}

TEST(SpeedMeterTest, ThreadsCountTogether) {
  SpeedMeter meter;
  constexpr int kThreads = 8;
  // Each loads 8000 bytes in 8 s; they end one after the other.
  absl::Time now = kNow;
  for (int i = 0; i < 20 * kThreads; ++i) {
    meter.Measured(Place::kHost, 8000, absl::Seconds(8), now += absl::Seconds(1));
  }
  EXPECT_NEAR(meter.speeds(now)[1], 8000, 1);
  // All at the same moment.
  for (int round = 0; round < 20; ++round) {
    now += absl::Seconds(8);
    for (int i = 0; i < kThreads; ++i) {
      meter.Measured(Place::kHost, 8000, absl::Seconds(8), now);
    }
  }
  EXPECT_NEAR(meter.speeds(now)[1], 8000, 1);
}

TEST(SpeedMeterTest, IdleTimeDoesNotCount) {
  SpeedMeter meter;
  absl::Time now = kNow;
  for (int i = 0; i < 20; ++i) {
    meter.Measured(Place::kDisk, 1000, absl::Seconds(1), now += absl::Seconds(10));
  }
  EXPECT_NEAR(meter.speeds(now)[2], 1000, 1);
}

TEST(SpeedMeterTest, AStallIsRememberedAndForgotten) {
  SpeedMeter meter;
  meter.Stalled(Place::kDisk, absl::Seconds(1), kNow);
  EXPECT_GT(meter.speeds(kNow)[2], 0);
  EXPECT_LT(meter.speeds(kNow)[2], 10);
  EXPECT_EQ(meter.speeds(kNow + SpeedMeter::kMemory + absl::Seconds(1))[2], 0);
  // Also while others load.
  meter.Measured(Place::kDisk, 1000, absl::Seconds(1), kNow);
  meter.Stalled(Place::kDisk, absl::Seconds(100), kNow);
  EXPECT_LT(meter.speeds(kNow)[2], 10);
}

}  // namespace
}  // namespace loopserve::kvstore
