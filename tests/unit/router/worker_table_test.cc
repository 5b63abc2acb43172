#include "router/worker_table.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::WorkerId;
using ::testing::HasSubstr;
using testing::StatusIs;

const WorkerId kOne("w1");
const WorkerId kTwo("w2");

WorkerTable TwoWorkers() { return WorkerTable({{kOne, "h:1"}, {kTwo, "h:2"}}); }

WorkerHealth HealthOf(const WorkerTable& table, const WorkerId& id) {
  for (const WorkerView& view : table.View()) {
    if (view.id == id) return view.health;
  }
  return WorkerHealth::kDown;
}

void BringUp(WorkerTable& table, const WorkerId& id, const std::string& instance = "i1") {
  ASSERT_TRUE(table.OnInfo(id, {.instance_id = instance, .model = "m", .draining = false}));
  table.OnLearned(id, instance);
}

TEST(ParseWorkersTest, ReadsIdAndTarget) {
  ASSERT_OK_AND_ASSIGN(const auto workers, ParseWorkerList({"w1=127.0.0.1:8101", "w2=[::1]:1"}));
  ASSERT_EQ(workers.size(), 2u);
  EXPECT_EQ(workers[0], (WorkerAddress{kOne, "127.0.0.1:8101"}));
  EXPECT_EQ(workers[1], (WorkerAddress{kTwo, "[::1]:1"}));
}

TEST(ParseWorkersTest, NamesWhatIsWrong) {
  for (const char* bad :
       {"", "127.0.0.1:8101", "=h:1", "w=h", "w=:1", "w=h:0", "w=h:65536", "w=h:x", "w="}) {
    EXPECT_THAT(ParseWorkerAddress(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("id=host:port")))
        << bad;
  }
  EXPECT_THAT(ParseWorkerList({}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseWorkerList({"a=h:1", "a=h:2"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a' twice")));
  EXPECT_THAT(ParseWorkerList({"a=h:1", "b=h:1"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'h:1' twice")));
}

TEST(WorkerTableTest, IsUpOnlyWhenItsSessionsAreLearned) {
  WorkerTable table = TwoWorkers();
  EXPECT_FALSE(table.AnyReady());
  EXPECT_TRUE(table.OnInfo(kOne, {.instance_id = "i1", .model = "m"}));
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDown);
  table.OnLearned(kOne, "i1");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
  EXPECT_FALSE(table.OnInfo(kOne, {.instance_id = "i1", .model = "m"}));
  EXPECT_TRUE(table.AnyReady());
  EXPECT_TRUE(table.WasLearned(kOne));
  EXPECT_FALSE(table.WasLearned(kTwo));
}

TEST(WorkerTableTest, AReportUnderWayIsAwaitedAndSilenceOnlyIfItCounts) {
  WorkerTable table = TwoWorkers();
  const auto awaits = [&table] {
    return std::pair(table.AwaitsReports(true), table.AwaitsReports(false));
  };
  EXPECT_EQ(awaits(), std::pair(true, false)) << "nobody has answered";
  table.OnInfo(kOne, {.instance_id = "i1", .model = "m"});
  EXPECT_EQ(awaits(), std::pair(true, true));
  table.OnLearned(kOne, "i1");
  EXPECT_EQ(awaits(), std::pair(true, false));
  table.OnInfo(kTwo, {.instance_id = "i2", .model = "m"});
  EXPECT_EQ(awaits(), std::pair(true, true));
  table.OnCheckFailed(kTwo, "its report broke off");
  table.OnInfo(kTwo, {.instance_id = "i2", .model = "m"});
  EXPECT_EQ(awaits(), std::pair(true, false)) << "once is enough";
  table.OnLearned(kTwo, "i2");
  EXPECT_EQ(awaits(), std::pair(false, false));
  table.OnInfo(kOne, {.instance_id = "i3", .model = "m"});
  EXPECT_EQ(awaits(), std::pair(false, false)) << "a restart is no first report";
}

TEST(WorkerTableTest, ARestartIsLearnedAgain) {
  WorkerTable table = TwoWorkers();
  BringUp(table, kOne);
  EXPECT_TRUE(table.OnInfo(kOne, {.instance_id = "i2", .model = "m"}));
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDown);
  table.OnLearned(kOne, "i1");  // the report of the one that is gone
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDown);
  table.OnLearned(kOne, "i2");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
}

TEST(WorkerTableTest, GoesDownAfterTwoFailuresAndUpAfterOneSuccess) {
  WorkerTable table = TwoWorkers();
  BringUp(table, kOne);
  table.OnCheckFailed(kOne, "timeout");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
  EXPECT_FALSE(table.OnInfo(kOne, {.instance_id = "i1", .model = "m"}));  // forgives
  table.OnCheckFailed(kOne, "timeout");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
  table.OnCheckFailed(kOne, "timeout");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDown);
  EXPECT_EQ(table.Rows()[0].last_error, "timeout");
  BringUp(table, kOne);
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
  EXPECT_EQ(table.Rows()[0].last_error, "");
}

TEST(WorkerTableTest, IsDownAtOnceWhenATurnFindsItGone) {
  WorkerTable table = TwoWorkers();
  BringUp(table, kOne);
  table.OnLost(kOne, "refused");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDown);
  EXPECT_TRUE(table.AnyReady() == false);
}

TEST(WorkerTableTest, DrainsByOwnOrOperatorsWish) {
  WorkerTable table = TwoWorkers();
  BringUp(table, kOne);
  EXPECT_TRUE(table.SetDraining(kOne, true));
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDraining);
  EXPECT_FALSE(table.AnyReady());
  EXPECT_TRUE(table.SetDraining(kOne, false));
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
  table.OnInfo(kOne, {.instance_id = "i1", .model = "m", .draining = true});
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDraining);
  EXPECT_FALSE(table.SetDraining(WorkerId("nobody"), true));
}

TEST(WorkerTableTest, AWorkerToldToDrainDoesSoUntilItRestarts) {
  WorkerTable table = TwoWorkers();
  BringUp(table, kOne);
  EXPECT_EQ(table.OnDrainCall(kOne), "i1");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kDraining);
  EXPECT_TRUE(table.Rows()[0].draining_itself);
  // What a check brings that was answered before the call.
  table.OnInfo(kOne, {.instance_id = "i1", .model = "m", .draining = false});
  EXPECT_TRUE(table.Rows()[0].draining_itself);
  BringUp(table, kOne, "i2");
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
  EXPECT_FALSE(table.Rows()[0].draining_itself);
  EXPECT_EQ(table.OnDrainCall(WorkerId("nobody")), "");
}

TEST(WorkerTableTest, AfterAFailedDrainTheWorkersWordCounts) {
  WorkerTable table = TwoWorkers();
  BringUp(table, kOne);
  table.OnDrainFailed(kOne, table.OnDrainCall(kOne));
  EXPECT_EQ(HealthOf(table, kOne), WorkerHealth::kReady);
  const std::string instance = table.OnDrainCall(kOne);
  table.OnInfo(kOne, {.instance_id = "i1", .model = "m", .draining = true});
  table.OnDrainFailed(kOne, instance);
  EXPECT_TRUE(table.Rows()[0].draining_itself);
  BringUp(table, kOne, "i2");
  table.OnDrainCall(kOne);
  table.OnDrainFailed(kOne, instance);  // the call to the one that is gone
  EXPECT_TRUE(table.Rows()[0].draining_itself);
}

TEST(WorkerTableTest, CountsWorkAndNamesModels) {
  WorkerTable table = TwoWorkers();
  EXPECT_TRUE(table.Models().empty());
  BringUp(table, kOne);
  table.AddInflight(kOne, 2);
  table.AddInflight(kOne, -1);
  table.AddInflight(WorkerId("nobody"), 1);
  EXPECT_EQ(table.View()[0].inflight, 1);
  EXPECT_EQ(table.Models(), std::vector<std::string>{"m"});
  EXPECT_EQ(table.ModelOf(kOne), "m");
  EXPECT_EQ(table.ModelOf(kTwo), "");
  EXPECT_EQ(table.ModelOf(WorkerId("nobody")), "");
  EXPECT_TRUE(table.Knows(kTwo));
  EXPECT_FALSE(table.Knows(WorkerId("nobody")));
}

TEST(WorkerTableTest, AwaitsAState) {
  WorkerTable table = TwoWorkers();
  EXPECT_FALSE(table.AwaitHealth(kOne, WorkerHealth::kReady, absl::ZeroDuration()));
  BringUp(table, kOne);
  EXPECT_TRUE(table.AwaitHealth(kOne, WorkerHealth::kReady, absl::ZeroDuration()));
}

}  // namespace
}  // namespace loopserve::router
