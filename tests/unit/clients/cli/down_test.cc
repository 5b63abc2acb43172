#include <gmock/gmock.h>

#include "clients/cli/cluster_state.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(DownTest, NothingUpIsFine) {
  const TempDir dir;
  const CliResult down = RunCli({"down", "--dir", dir.path()});
  EXPECT_EQ(down.code, kDone);
  EXPECT_THAT(down.err, HasSubstr("nothing is up"));
  EXPECT_EQ(RunCli({"down", "--dir", dir.path(), "--json"}).json()["stopped"], 0);
}

TEST(DownTest, CleansUpAfterProcessesThatHaveEnded) {
  const TempDir dir;
  ClusterState state;
  state.dir = dir.path();
  state.members.push_back({"w1", "worker", {1, 999999999}, "h:1", "", "", ""});
  ASSERT_OK(SaveClusterState(state));
  const CliResult down = RunCli({"down", "--dir", dir.path()});
  EXPECT_EQ(down.code, kDone);
  EXPECT_THAT(down.out, HasSubstr("had ended already"));
  EXPECT_FALSE(std::filesystem::exists(ClusterStatePath(dir.path())));
}

TEST(DownTest, DoesNotGuessAtADamagedFile) {
  const TempDir dir;
  dir.Write("cluster.json", "{");
  const CliResult down = RunCli({"down", "--dir", dir.path()});
  EXPECT_EQ(down.code, kFailed);
  EXPECT_THAT(down.err, HasSubstr("damaged"));
}

}  // namespace
}  // namespace loopserve::clients
