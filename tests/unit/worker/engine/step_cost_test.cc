#include "worker/engine/step_cost.h"

#include <random>

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

StepShape Shape(int64_t kv_tokens, int64_t rows) {
  StepShape shape;
  shape.Add(kv_tokens, rows);
  return shape;
}

// A machine that reads the weights in 4 ms, computes a row in 0.2 ms and 1000 keys in 1 ms.
absl::Duration Truth(const StepShape& step) {
  const double rows = static_cast<double>(step.rows);
  return absl::Milliseconds(std::max(4.0, 0.2 * rows) + 0.001 * static_cast<double>(step.keys));
}

// What a worker sees: prefill in chunks, steps of a few decoding sequences, both together.
void Train(StepCost& cost, int steps, double noise = 0) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int i = 0; i < steps; ++i) {
    StepShape step;
    if (i % 3 != 0) step.Add(static_cast<int64_t>(uniform(random) * 3000), 1 + i % 8);
    if (i % 3 != 1) step.Add(static_cast<int64_t>(uniform(random) * 3000), 16 << (i % 6));
    absl::Duration took = Truth(step) * (1 + noise * uniform(random));
    if (noise > 0 && i % 50 == 49) took *= 30;  // the machine was elsewhere
    cost.Observe(step, took);
  }
}

TEST(StepShape, CountsThePairsThatAttentionReads) {
  const StepShape shape = Shape(10, 3);  // reads 11, 12 and 13 keys
  EXPECT_EQ(shape.rows, 3);
  EXPECT_EQ(shape.keys, 36);
}

TEST(StepCost, KnowsNothingAtFirst) {
  const StepCost cost;
  EXPECT_EQ(cost.Predict(Shape(0, 100)), absl::ZeroDuration());
  EXPECT_EQ(cost.RowsWithin(absl::Milliseconds(1), Shape(0, 1), 0, 500), 500);
}

TEST(StepCost, OneStepIsPredictedAsItWas) {
  StepCost cost;
  cost.Observe(Shape(100, 20), absl::Milliseconds(30));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(cost.Predict(Shape(100, 20))), 30, 0.01);
  EXPECT_LT(cost.Predict(Shape(100, 1)), absl::Milliseconds(30));
  EXPECT_GT(cost.Predict(Shape(100, 200)), absl::Milliseconds(60));
}

TEST(StepCost, LearnsTheMachine) {
  StepCost cost;
  Train(cost, 600);
  for (const StepShape& step : {Shape(0, 1), Shape(2000, 4), Shape(500, 64), Shape(2500, 256)}) {
    const double truth = absl::ToDoubleSeconds(Truth(step));
    EXPECT_NEAR(absl::ToDoubleSeconds(cost.Predict(step)), truth, 0.25 * truth)
        << step.rows << " rows, " << step.keys << " keys";
  }
}

TEST(StepCost, OutliersMoveItLittle) {
  StepCost cost;
  Train(cost, 2000, 0.1);
  for (const StepShape& step : {Shape(2000, 4), Shape(500, 64), Shape(2500, 256)}) {
    const double truth = absl::ToDoubleSeconds(Truth(step));
    EXPECT_NEAR(absl::ToDoubleSeconds(cost.Predict(step)), truth, 0.4 * truth)
        << step.rows << " rows, " << step.keys << " keys";
  }
}

TEST(StepCost, FollowsAMachineThatSlowsDown) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) cost.Observe(Shape(0, 64), absl::Milliseconds(10));
  for (int i = 0; i < 50; ++i) cost.Observe(Shape(0, 64), absl::Milliseconds(30));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(cost.Predict(Shape(0, 64))), 30, 1);
}

TEST(StepCost, MoreNeverCostsLess) {
  StepCost cost;
  // Fewer rows that took longer.
  cost.Observe(Shape(0, 8), absl::Milliseconds(20));
  cost.Observe(Shape(0, 64), absl::Milliseconds(10));
  absl::Duration last;
  for (int64_t rows = 1; rows < 3000; ++rows) {
    const absl::Duration next = cost.Predict(Shape(0, rows));
    ASSERT_GE(next, last) << rows;
    last = next;
  }
}

TEST(StepCost, MeaninglessStepsAreIgnored) {
  StepCost cost;
  cost.Observe(Shape(0, 8), absl::ZeroDuration());
  cost.Observe(Shape(0, 8), -absl::Seconds(1));
  cost.Observe(Shape(0, 8), absl::InfiniteDuration());
  cost.Observe({}, absl::Seconds(1));
  EXPECT_EQ(cost.Predict(Shape(0, 8)), absl::ZeroDuration());
}

TEST(RowsWithin, IsTheMostThatFits) {
  StepCost cost;
  Train(cost, 600);
  const StepShape decodes = Shape(2000, 4);
  for (int64_t kv_tokens : {0, 1000, 3000}) {
    const int64_t rows = cost.RowsWithin(absl::Milliseconds(50), decodes, kv_tokens, 512);
    StepShape fits = decodes, too_many = decodes;
    fits.Add(kv_tokens, rows);
    too_many.Add(kv_tokens, rows + 1);
    EXPECT_LE(cost.Predict(fits), absl::Milliseconds(50));
    EXPECT_TRUE(rows == 512 || cost.Predict(too_many) > absl::Milliseconds(50));
    EXPECT_GT(rows, 0);
  }
  EXPECT_EQ(cost.RowsWithin(absl::Seconds(100), decodes, 0, 512), 512);
  EXPECT_EQ(cost.RowsWithin(absl::Milliseconds(1), decodes, 0, 512), 0);
}

TEST(RowsWithin, WhatWasNeverRunIsTriedInSmallSteps) {
  StepCost cost;
  cost.Observe(Shape(0, 3), absl::Milliseconds(1));
  EXPECT_EQ(cost.RowsWithin(absl::Seconds(100), Shape(0, 2), 0, 512), 4);
  cost.Observe(Shape(0, 40), absl::Milliseconds(10));
  EXPECT_EQ(cost.RowsWithin(absl::Seconds(100), {}, 0, 512), 80);
}

TEST(RowsWithin, FewerFitBehindALongHistory) {
  StepCost cost;
  Train(cost, 600);
  EXPECT_LT(cost.RowsWithin(absl::Milliseconds(50), {}, 3000, 512),
            cost.RowsWithin(absl::Milliseconds(50), {}, 0, 512));
}

}  // namespace
}  // namespace loopserve::worker
