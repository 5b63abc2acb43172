#include <gmock/gmock.h>

#include "clients/cli/cluster_state.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

class LogsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ClusterState state;
    state.dir = dir_.path();
    state.members.push_back(
        {"w1", "worker", {}, "h:1", "", "", dir_.Write("logs/w1.log", "a\nb\nc\n")});
    state.members.push_back(
        {"router", "router", {}, "h:2", "", "", dir_.Write("logs/r.log", "r\n")});
    ASSERT_OK(SaveClusterState(state));
  }
  TempDir dir_;
};

TEST_F(LogsTest, ShowsTheLastLinesOfAll) {
  const CliResult logs = RunCli({"logs", "--dir", dir_.path(), "-n", "2"});
  EXPECT_EQ(logs.code, kDone);
  EXPECT_EQ(logs.out, "w1 | b\nw1 | c\nrouter | r\n");
}

TEST_F(LogsTest, ShowsOnlyTheNamed) {
  EXPECT_EQ(RunCli({"logs", "router", "--dir", dir_.path()}).out, "router | r\n");
  const CliResult json = RunCli({"logs", "router", "--dir", dir_.path(), "--json"});
  EXPECT_EQ(json.json()["line"], "r");
}

TEST_F(LogsTest, NamesTheKnownForAnUnknown) {
  const CliResult logs = RunCli({"logs", "w9", "--dir", dir_.path()});
  EXPECT_EQ(logs.code, kFailed);
  EXPECT_THAT(logs.err, HasSubstr("w1, router"));
}

TEST(LogsWithoutClusterTest, SaysWhereOlderOnesAreIfThereAreAny) {
  const TempDir dir;
  const CliResult none = RunCli({"logs", "--dir", dir.path()});
  EXPECT_EQ(none.code, kFailed);
  EXPECT_THAT(none.err, HasSubstr("nothing is up in " + dir.path()));
  EXPECT_THAT(none.err, ::testing::Not(HasSubstr("/logs")));
  dir.Write("logs/w1.log", "a\n");
  const CliResult logs = RunCli({"logs", "--dir", dir.path()});
  EXPECT_EQ(logs.code, kFailed);
  EXPECT_THAT(logs.err, HasSubstr(dir.path() + "/logs"));
}

}  // namespace
}  // namespace loopserve::clients
