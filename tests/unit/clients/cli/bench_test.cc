#include <gmock/gmock.h>

#include "tests/unit/clients/cli/fake_router.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

class BenchTest : public ::testing::Test {
 protected:
  CliResult Bench(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"bench", "--endpoint", router_.address(), "--users", "2",
                                         "--turns", "2", "--think-time", "0"});
    return RunCli(arguments);
  }
  FakeRouter router_;
};

TEST_F(BenchTest, ReportsAsJsonAndAsATable) {
  const CliResult bench = Bench({"--json"});
  EXPECT_EQ(bench.code, kDone) << bench.err;
  EXPECT_EQ(bench.json()["completed"], 4);
  EXPECT_EQ(bench.json()["session_retain_ratio"], 1.0);
  EXPECT_THAT(Bench({}).out, HasSubstr("TTFT ms, returning (2)"));
}

TEST_F(BenchTest, AMissedThresholdIsThree) {
  EXPECT_EQ(Bench({"--min-cached-ratio", "0.4"}).code, kDone);
  const CliResult missed = Bench({"--min-cached-ratio", "0.99"});
  EXPECT_EQ(missed.code, kThresholdMissed);
  EXPECT_THAT(missed.err, HasSubstr("cached token ratio"));
}

TEST_F(BenchTest, LostTurnsFail) {
  router_.FailNextTurns({common::MakeError(common::Reason::kInternal, "bug")});
  const CliResult bench = Bench({"--json"});
  EXPECT_EQ(bench.code, kFailed);
  EXPECT_EQ(bench.json()["lost_turns"], 1);
}

TEST(BenchWithoutRouterTest, IsUnreachable) {
  EXPECT_EQ(RunCli({"bench", "--endpoint", "127.0.0.1:1"}).code, kUnreachable);
}

}  // namespace
}  // namespace loopserve::clients
