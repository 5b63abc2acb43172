#include "worker/pod/plan_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::StatusIs;

constexpr PlanLimits kLimits{.step_tokens = 8, .blocks = 16};

std::vector<common::BlockId> Blocks(std::initializer_list<uint32_t> ids) {
  std::vector<common::BlockId> blocks;
  for (const uint32_t id : ids) blocks.emplace_back(id);
  return blocks;
}

// Two sequences: one that prefills by lines, one that decodes with a working set.
struct SomePlan {
  SomePlan() {
    lines.heads = {{.verticals = {0, 3}, .slashes = {1}}, {.verticals = {}, .slashes = {0, 2, 4}}};
    set = {.keys = {{0, 5}, {}}, .dense_from = 30};
    plan.parts.push_back({.rows = 3, .kv_tokens = 5, .blocks = Blocks({15, 0}), .lines = &lines});
    plan.parts.push_back(
        {.rows = 1, .kv_tokens = 33, .blocks = Blocks({1, 2, 3}), .working_set = &set});
    plan.tokens = {7, 8, 9, 100};
    plan.positions = {2, 3, 4, 32};
    plan.logit_rows = {2, 3};
  }
  pod::v1::Step Message() const {
    pod::v1::Step step;
    PlanToProto(plan, &step);
    return step;
  }
  LinePlan lines;
  WorkingSet set;
  StepPlan plan;
};

TEST(PlanCodec, APlanComesBackAsItWas) {
  const SomePlan some;
  pod::v1::Step parsed;
  ASSERT_TRUE(parsed.ParseFromString(some.Message().SerializeAsString()));
  ReceivedPlan received;
  ASSERT_OK(PlanFromProto(parsed, kLimits, received));
  const StepPlan& plan = received.plan;
  EXPECT_EQ(plan.tokens, some.plan.tokens);
  EXPECT_EQ(plan.positions, some.plan.positions);
  EXPECT_EQ(plan.logit_rows, some.plan.logit_rows);
  ASSERT_EQ(plan.parts.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(plan.parts[i].rows, some.plan.parts[i].rows);
    EXPECT_EQ(plan.parts[i].kv_tokens, some.plan.parts[i].kv_tokens);
    EXPECT_EQ(plan.parts[i].blocks, some.plan.parts[i].blocks);
  }
  ASSERT_NE(plan.parts[0].lines, nullptr);
  EXPECT_EQ(plan.parts[0].working_set, nullptr);
  ASSERT_EQ(plan.parts[0].lines->heads.size(), 2U);
  EXPECT_EQ(plan.parts[0].lines->heads[0].verticals, some.lines.heads[0].verticals);
  EXPECT_EQ(plan.parts[0].lines->heads[1].slashes, some.lines.heads[1].slashes);
  ASSERT_NE(plan.parts[1].working_set, nullptr);
  EXPECT_EQ(plan.parts[1].lines, nullptr);
  EXPECT_EQ(plan.parts[1].working_set->keys, some.set.keys);
  EXPECT_EQ(plan.parts[1].working_set->dense_from, 30);
}

TEST(PlanCodec, ThatTokensAreChosenIsToldAndNotHow) {
  SomePlan some;
  ReceivedPlan received;
  ASSERT_OK(PlanFromProto(some.Message(), kLimits, received));
  EXPECT_TRUE(received.plan.sampling.rows.empty());
  some.plan.sampling.rows.resize(2, {.top_k = 7});
  ReceivedPlan chosen;
  ASSERT_OK(PlanFromProto(some.Message(), kLimits, chosen));
  EXPECT_EQ(chosen.plan.sampling.rows, (std::vector<RowSampling>(2)));
}

TEST(PlanCodec, APlanOfNothingIsOne) {
  ReceivedPlan received;
  EXPECT_OK(PlanFromProto({}, kLimits, received));
  EXPECT_TRUE(received.plan.parts.empty());
}

TEST(PlanCodec, WhatNoPlanCanBeIsRefused) {
  const std::vector<std::function<void(pod::v1::Step&)>> lies = {
      [](auto& step) { step.mutable_parts(0)->set_rows(0); },
      [](auto& step) { step.mutable_parts(0)->set_rows(-1); },
      [](auto& step) { step.mutable_parts(0)->set_rows(9); },
      [](auto& step) { step.mutable_parts(0)->set_rows(int64_t{1} << 62); },
      [](auto& step) { step.mutable_parts(0)->set_kv_tokens(2); },
      [](auto& step) { step.mutable_parts(0)->set_kv_tokens(int64_t{1} << 62); },
      [](auto& step) { step.mutable_parts(0)->add_blocks(16); },
      [](auto& step) { step.mutable_parts(0)->add_blocks(~uint32_t{0}); },
      [](auto& step) { step.add_tokens(1); },
      [](auto& step) { step.clear_tokens(); },
      [](auto& step) { step.add_positions(1); },
      [](auto& step) { step.mutable_logit_rows()->Resize(5, 0); },
      [](auto& step) { *step.add_parts() = step.parts(1); },
      [](auto& step) {
        step.mutable_parts(0)->mutable_lines()->mutable_heads(0)->add_verticals(1);
      },
      [](auto& step) { step.mutable_parts(0)->mutable_lines()->mutable_heads(0)->add_slashes(5); },
      [](auto& step) { step.mutable_parts(1)->mutable_working_set()->set_dense_from(34); },
      [](auto& step) { step.mutable_parts(1)->mutable_working_set()->set_dense_from(-1); },
      [](auto& step) {
        step.mutable_parts(1)->mutable_working_set()->mutable_heads(1)->add_keys(-1);
      },
  };
  for (size_t i = 0; i < lies.size(); ++i) {
    pod::v1::Step step = SomePlan().Message();
    lies[i](step);
    ReceivedPlan received;
    EXPECT_THAT(PlanFromProto(step, kLimits, received),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << "lie " << i;
  }
}

// Damaged on the way: an error or a plan within the limits, never a crash.
TEST(PlanCodec, AnyBytesAreAnErrorOrAPlanWithinTheLimits) {
  const std::string good = SomePlan().Message().SerializeAsString();
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (int i = 0, changes = 1 + static_cast<int>(random() % 4); i < changes; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    pod::v1::Step step;
    if (!step.ParseFromString(bytes)) continue;
    ReceivedPlan received;
    if (!PlanFromProto(step, kLimits, received).ok()) continue;
    EXPECT_LE(received.plan.tokens.size(), 8U);
    EXPECT_EQ(received.plan.tokens.size(), received.plan.positions.size());
    for (const StepPlan::Part& part : received.plan.parts) {
      for (const common::BlockId block : part.blocks) EXPECT_LT(block.value(), kLimits.blocks);
    }
  }
}

}  // namespace
}  // namespace loopserve::worker
