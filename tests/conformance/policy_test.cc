// What every KV policy of policies.def must hold to.
#include <algorithm>
#include <string>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "worker/policy/kv_policy.h"

namespace loopserve::worker {
namespace {

class PolicyConformance : public ::testing::TestWithParam<PolicyEntry> {
 protected:
  std::unique_ptr<KvPolicy> policy_ = GetParam().create();
};

void ExpectSortedKeys(const std::vector<int32_t>& keys, int64_t kv_tokens) {
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  EXPECT_EQ(std::adjacent_find(keys.begin(), keys.end()), keys.end()) << "a key twice";
  if (keys.empty()) return;
  EXPECT_GE(keys.front(), 0);
  EXPECT_LT(keys.back(), kv_tokens);
}

TEST_P(PolicyConformance, HasANameAndATag) {
  EXPECT_EQ(policy_->name(), GetParam().name);
  EXPECT_FALSE(policy_->tag().empty());
}

TEST_P(PolicyConformance, PrefillPlansCoverEveryHeadWithinTheKeys) {
  for (int64_t rows : {1, 7, 64}) {
    for (int64_t kv_tokens : {rows, rows + 1, rows + 333}) {
      LinePlan lines;
      const StepView step{.rows = rows, .kv_tokens = kv_tokens, .q_heads = 6, .kv_heads = 2};
      ASSERT_OK_AND_ASSIGN(bool sparse, policy_->PlanPrefill(step, lines));
      if (!sparse) continue;
      ASSERT_EQ(lines.heads.size(), 6u);
      for (const LinePlan::Head& head : lines.heads) {
        ExpectSortedKeys(head.verticals, kv_tokens);
        ExpectSortedKeys(head.slashes, kv_tokens);
      }
    }
  }
}

TEST_P(PolicyConformance, DecodePlansCoverEveryKvHeadWithinTheKeys) {
  for (int64_t kv_tokens : {1, 2, 65, 1000}) {
    WorkingSet keys;
    const StepView step{.rows = 1, .kv_tokens = kv_tokens, .q_heads = 6, .kv_heads = 2};
    ASSERT_OK_AND_ASSIGN(bool sparse, policy_->PlanDecode(step, keys));
    if (!sparse) continue;
    ASSERT_EQ(keys.keys.size(), 2u);
    EXPECT_LT(keys.dense_from, kv_tokens) << "the newest key must be read";
    for (const auto& head : keys.keys) ExpectSortedKeys(head, keys.dense_from);
  }
}

TEST_P(PolicyConformance, ExactPoliciesKeepTheirKvForLaterTurns) {
  if (policy_->tag() != "exact") GTEST_SKIP() << "a lossy policy may drop what it likes";
  EXPECT_TRUE(policy_->AtTurnEnd({.kv_tokens = 100, .prompt_tokens = 60}).save);
}

INSTANTIATE_TEST_SUITE_P(All, PolicyConformance,
                         ::testing::ValuesIn(Policies().begin(), Policies().end()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace loopserve::worker
