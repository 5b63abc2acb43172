#include <set>
#include <string>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "worker/policy/kv_policy.h"

namespace loopserve::worker {
namespace {

TEST(Registry, FindsEveryListedPolicyUnderItsOwnName) {
  std::set<std::string> names;
  for (const PolicyEntry& entry : Policies()) {
    ASSERT_OK_AND_ASSIGN(auto policy, CreatePolicy(entry.name));
    EXPECT_EQ(policy->name(), entry.name);
    EXPECT_TRUE(names.insert(std::string(entry.name)).second) << "listed twice: " << entry.name;
  }
  EXPECT_TRUE(names.count("full"));
}

TEST(Registry, AnUnknownNameIsAnErrorThatListsTheKnown) {
  EXPECT_THAT(CreatePolicy("nope"),
              ::loopserve::testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                             ::testing::HasSubstr("full")));
}

}  // namespace
}  // namespace loopserve::worker
