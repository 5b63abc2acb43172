#include "clients/cli/cluster_state.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::loopserve::testing::StatusIs;

TEST(ClusterStateTest, SurvivesSavingAndLoading) {
  const TempDir dir;
  ClusterState state;
  state.dir = dir.path();
  state.model = "/m.gguf";
  state.members.push_back({"w1", "worker", {12, 34}, "127.0.0.1:1", "127.0.0.1:2", "", "/log"});
  state.members.push_back(
      {"router", "router", {56, 78}, "127.0.0.1:3", "127.0.0.1:4", "127.0.0.1:5", "/log2"});
  ASSERT_OK(SaveClusterState(state));
  ASSERT_OK_AND_ASSIGN(const ClusterState loaded, LoadClusterState(dir.path()));
  EXPECT_EQ(ToJson(loaded), ToJson(state));
  EXPECT_EQ(loaded.endpoint(), "127.0.0.1:3");
  EXPECT_EQ(loaded.admin_endpoint(), "127.0.0.1:5");
  EXPECT_EQ(loaded.Find("w1")->process.start_ticks, 34u);
  EXPECT_EQ(loaded.Find("w2"), nullptr);
  EXPECT_EQ(loaded.WithRole("worker").size(), 1u);
  EXPECT_TRUE(loaded.Running().empty());
}

TEST(ClusterStateTest, NothingStartedIsNotFound) {
  const TempDir dir;
  EXPECT_THAT(LoadClusterState(dir.path()), StatusIs(absl::StatusCode::kNotFound));
}

TEST(ClusterStateTest, DamagedFilesAreRefused) {
  const TempDir dir;
  for (const char* text : {"", "{", "[]", "{}", R"({"version":99,"members":[]})",
                           R"({"version":1,"members":7})", R"({"version":1,"members":[3]})"}) {
    dir.Write("cluster.json", text);
    EXPECT_THAT(LoadClusterState(dir.path()), StatusIs(absl::StatusCode::kDataLoss)) << text;
  }
}

TEST(ClusterStateTest, FieldsOfTheWrongTypeReadAsUnset) {
  const TempDir dir;
  dir.Write("cluster.json", R"({"version":1,"members":[{"name":5,"pid":"x","start_ticks":-1}]})");
  ASSERT_OK_AND_ASSIGN(const ClusterState state, LoadClusterState(dir.path()));
  EXPECT_EQ(state.members[0].process.pid, 0);
  EXPECT_TRUE(state.Running().empty());
}

}  // namespace
}  // namespace loopserve::clients
