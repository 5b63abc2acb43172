#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "worker/policy/kv_policy.h"

namespace loopserve::worker {
namespace {

TEST(Full, ReadsEverythingAsksForNothingAndKeepsAll) {
  ASSERT_OK_AND_ASSIGN(auto policy, CreatePolicy("full"));
  const StepView step{.rows = 8, .kv_tokens = 100, .q_heads = 4, .kv_heads = 2};
  LinePlan lines;
  WorkingSet keys;
  ASSERT_OK_AND_ASSIGN(bool sparse_prefill, policy->PlanPrefill(step, lines));
  ASSERT_OK_AND_ASSIGN(bool sparse_decode, policy->PlanDecode(step, keys));
  EXPECT_FALSE(sparse_prefill);
  EXPECT_FALSE(sparse_decode);
  const PolicyNeeds needs = policy->Needs();
  EXPECT_FALSE(needs.sampled_rows || needs.recent_queries || needs.page_bounds);
  EXPECT_EQ(policy->tag(), "exact");
  const RetentionPlan retention = policy->AtTurnEnd({.kv_tokens = 100, .prompt_tokens = 50});
  EXPECT_TRUE(retention.keep_on_device && retention.save);
}

}  // namespace
}  // namespace loopserve::worker
