#include "clients/cli/environment.h"

#include <gtest/gtest.h>

namespace loopserve::clients {
namespace {

TEST(EnvironmentTest, ReadsNameValuePairs) {
  const char* const envp[] = {"A=1", "B=x=y", "EMPTY=", "NOEQUALS", nullptr};
  const Environment env = Environment::OfMain(envp);
  EXPECT_EQ(env.Get("A"), "1");
  EXPECT_EQ(env.Get("B"), "x=y");
  EXPECT_EQ(env.Get("EMPTY"), "");
  EXPECT_EQ(env.Get("NOEQUALS"), "");
}

TEST(EnvironmentTest, StateDirFollowsXdgThenHome) {
  EXPECT_EQ(Environment::Of({{"HOME", "/h"}}).StateDir(), "/h/.loopserve");
  EXPECT_EQ(Environment::Of({{"HOME", "/h"}, {"XDG_STATE_HOME", "/s"}}).StateDir(), "/s/loopserve");
}

TEST(EnvironmentTest, ModelIsWhereMakeModelLeavesIt) {
  EXPECT_EQ(Environment::Of({{"HOME", "/h"}}).DefaultModelPath(),
            "/h/.cache/loopserve/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  EXPECT_EQ(Environment::Of({{"HOME", "/h"}, {"XDG_CACHE_HOME", "/c"}}).DefaultModelPath(),
            "/c/loopserve/models/SmolLM2-135M-Instruct.Q4_1.gguf");
}

}  // namespace
}  // namespace loopserve::clients
