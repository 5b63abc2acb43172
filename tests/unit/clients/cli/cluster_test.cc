#include "clients/cli/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

ClusterOptions FakeOptions(const TempDir& dir) {
  ClusterOptions options;
  options.dir = dir.path() + "/cluster";
  options.bin_dir = dir.path() + "/bin";
  options.model = dir.path() + "/model.gguf";
  options.port = 0;
  return options;
}

void Ignore(absl::string_view) {}

TEST(ClusterTest, ParsesReadyLines) {
  Member member;
  EXPECT_TRUE(
      ParseReadyLine("ready grpc=127.0.0.1:8001 metrics=127.0.0.1:8002 admin=h:3", &member));
  EXPECT_EQ(member.grpc, "127.0.0.1:8001");
  EXPECT_EQ(member.metrics, "127.0.0.1:8002");
  EXPECT_EQ(member.admin, "h:3");
  EXPECT_FALSE(ParseReadyLine("loading the model", &member));
  Member empty;
  EXPECT_FALSE(ParseReadyLine("ready soon", &empty));
}

TEST(ClusterTest, CommandLinesCarryTheOptions) {
  ClusterOptions options;
  options.dir = "/d";
  options.bin_dir = "/b";
  options.model = "/m";
  options.tp = 3;
  options.threads = 2;
  options.kv_dtype = "int8";
  options.kv_codec = "int8";
  options.worker_args = {"--max-batch=4"};
  EXPECT_THAT(WorkerCommand(options, "w1", "127.0.0.1:8201", {8101, 8102, 0}),
              ElementsAre("/b/loopserve-worker", "--id=w1", "--listen=127.0.0.1:8101",
                          "--metrics-listen=127.0.0.1:8102", "--model=/m",
                          "--kv-disk-dir=/d/workers/w1", "--kvstore=127.0.0.1:8201", "--tp=3",
                          "--threads=2", "--kv-dtype=int8", "--kv-codec=int8", "--max-batch=4"));
  EXPECT_THAT(KvStoreCommand(options, {0, 0, 0}),
              ElementsAre("/b/loopserve-kvstore", "--listen=127.0.0.1:0",
                          "--metrics-listen=127.0.0.1:0", "--dir=/d/kvstore"));
  Member w1, w2;
  w1.name = "w1", w1.grpc = "h:1", w2.name = "w2", w2.grpc = "h:2";
  EXPECT_THAT(RouterCommand(options, {w1, w2}, {1, 2, 3}), Contains("--workers=w1=h:1,w2=h:2"));
}

TEST(ClusterTest, StartsAllAndStopsAll) {
  const TempDir dir;
  WriteFakeServers(dir);
  std::vector<std::string> steps;
  ASSERT_OK_AND_ASSIGN(
      const ClusterState state,
      StartCluster(FakeOptions(dir), [&](absl::string_view step) { steps.emplace_back(step); }));
  EXPECT_THAT(steps, ElementsAre("starting kvstore (1 of 4)", "starting w1 (2 of 4)",
                                 "starting w2 (3 of 4)", "starting router (4 of 4)"));
  EXPECT_EQ(state.Running().size(), 4u);
  EXPECT_EQ(state.endpoint(), "127.0.0.1:1");
  ASSERT_OK_AND_ASSIGN(const ClusterState saved, LoadClusterState(state.dir));
  EXPECT_EQ(ToJson(saved), ToJson(state));
  EXPECT_THAT(StartCluster(FakeOptions(dir), Ignore),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("loopserve down")));
  EXPECT_EQ(state.Running().size(), 4u);
  ASSERT_OK_AND_ASSIGN(const auto killed, StopCluster(state, absl::Seconds(10), Ignore));
  EXPECT_TRUE(killed.empty());
  EXPECT_TRUE(state.Running().empty());
  EXPECT_THAT(LoadClusterState(state.dir), StatusIs(absl::StatusCode::kNotFound));
}

TEST(ClusterTest, AStaleStateFileIsNoObstacle) {
  const TempDir dir;
  WriteFakeServers(dir);
  ClusterState stale;
  stale.dir = dir.path() + "/cluster";
  stale.members.push_back(
      {"w1", "worker", {1, 999999999}, "h:1", "", "", ""});  // pid 1, other start
  std::filesystem::create_directories(stale.dir);
  ASSERT_OK(SaveClusterState(stale));
  ASSERT_OK_AND_ASSIGN(const ClusterState state, StartCluster(FakeOptions(dir), Ignore));
  ASSERT_OK(StopCluster(state, absl::Seconds(10), Ignore).status());
}

TEST(ClusterTest, AFailedStartShowsTheLogAndStopsTheRest) {
  const TempDir dir;
  WriteFakeServers(dir, "#!/bin/sh\necho the model is damaged\nexit 1\n");
  std::string before;
  EXPECT_THAT(StartCluster(FakeOptions(dir), Ignore),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("the model is damaged")));
  EXPECT_THAT(LoadClusterState(dir.path() + "/cluster"), StatusIs(absl::StatusCode::kNotFound));
}

TEST(ClusterTest, AnOldReadyLineDoesNotCount) {
  const TempDir dir;
  WriteFakeServers(dir, "#!/bin/sh\nexit 1\n");
  dir.Write("cluster/logs/w1.log", "ready grpc=127.0.0.1:9\n");
  EXPECT_THAT(StartCluster(FakeOptions(dir), Ignore),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("ended before it was ready")));
}

TEST(ClusterTest, GivesUpOnAServerThatIsNeverReady) {
  const TempDir dir;
  WriteFakeServers(dir, "#!/bin/sh\nexec sleep 600\n");
  ClusterOptions options = FakeOptions(dir);
  options.ready_timeout = absl::Milliseconds(50);
  EXPECT_THAT(StartCluster(options, Ignore),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("was not ready within 50ms")));
}

TEST(ClusterTest, StopsWhenInterrupted) {
  const TempDir dir;
  WriteFakeServers(dir, "#!/bin/sh\nexec sleep 600\n");
  const std::atomic<bool> stop = true;
  EXPECT_THAT(StartCluster(FakeOptions(dir), Ignore, &stop),
              StatusIs(absl::StatusCode::kCancelled));
}

TEST(ClusterTest, NamesWhatIsMissing) {
  const TempDir dir;
  EXPECT_THAT(StartCluster(FakeOptions(dir), Ignore),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("make model")));
  dir.Write("model.gguf", "GGUF");
  EXPECT_THAT(StartCluster(FakeOptions(dir), Ignore),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("make build")));
}

TEST(ClusterTest, KillsWhatDoesNotEnd) {
  const TempDir dir;
  WriteFakeServers(dir,
                   "#!/bin/sh\ntrap '' TERM\necho ready grpc=127.0.0.1:1 metrics=127.0.0.1:2\n"
                   "while true; do sleep 0.05; done\n");
  ASSERT_OK_AND_ASSIGN(const ClusterState state, StartCluster(FakeOptions(dir), Ignore));
  ASSERT_OK_AND_ASSIGN(const auto killed, StopCluster(state, absl::Milliseconds(200), Ignore));
  EXPECT_THAT(killed, Contains("w1"));
  EXPECT_THAT(killed, Contains("w2"));
  EXPECT_THAT(killed, Not(Contains("router")));
  EXPECT_TRUE(state.Running().empty());
}

}  // namespace
}  // namespace loopserve::clients
