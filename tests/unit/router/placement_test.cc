#include "router/placement.h"

#include <gtest/gtest.h>

#include <map>

#include "common/error.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Epoch;
using common::Reason;
using common::WorkerId;
using testing::ReasonIs;

std::vector<WorkerView> Ready(int count) {
  std::vector<WorkerView> workers;
  for (int i = 1; i <= count; ++i) {
    workers.push_back({WorkerId("w" + std::to_string(i)), WorkerHealth::kReady, 0});
  }
  return workers;
}

WorkerView& At(std::vector<WorkerView>& workers, const WorkerId& id) {
  for (WorkerView& worker : workers) {
    if (worker.id == id) return worker;
  }
  ADD_FAILURE() << "no worker " << id;
  return workers.front();
}

Pin PinAt(const std::string& worker, uint64_t epoch) { return {WorkerId(worker), Epoch(epoch)}; }

TEST(PlacementTest, ASessionStaysWithItsWorkerUnderItsEpoch) {
  auto workers = Ready(3);
  At(workers, WorkerId("w2")).inflight = 1000;  // load alone does not move a session
  ASSERT_OK_AND_ASSIGN(const Placement p, PlaceSession("s", PinAt("w2", 9), workers, {}));
  EXPECT_EQ(p, (Placement{PinAt("w2", 9), PlacementReason::kSession}));
}

TEST(PlacementTest, ANewSessionGoesByHashAlwaysTheSameWay) {
  const auto workers = Ready(3);
  for (int i = 0; i < 50; ++i) {
    const std::string session = "s" + std::to_string(i);
    ASSERT_OK_AND_ASSIGN(const Placement a, PlaceSession(session, std::nullopt, workers, {}));
    ASSERT_OK_AND_ASSIGN(const Placement b, PlaceSession(session, std::nullopt, workers, {}));
    EXPECT_EQ(a, b);
    EXPECT_EQ(a.reason, PlacementReason::kHash);
    EXPECT_EQ(a.pin.epoch, Epoch(1));
  }
}

TEST(PlacementTest, HashesSpreadAndMoveOnlyWhatTheyMust) {
  const auto four = Ready(4);
  auto three = four;
  three.pop_back();
  std::map<std::string, int> counts;
  for (int i = 0; i < 4000; ++i) {
    const std::string session = "session-" + std::to_string(i);
    ASSERT_OK_AND_ASSIGN(const Placement with, PlaceSession(session, std::nullopt, four, {}));
    ASSERT_OK_AND_ASSIGN(const Placement without, PlaceSession(session, std::nullopt, three, {}));
    ++counts[with.pin.worker.value()];
    if (with.pin.worker.value() != "w4") {
      EXPECT_EQ(with.pin.worker, without.pin.worker);
    }
  }
  for (const auto& [worker, count] : counts) {
    EXPECT_GT(count, 850) << worker;
    EXPECT_LT(count, 1150) << worker;
  }
}

TEST(PlacementTest, PassesOverAWorkerWithMoreThanItsShare) {
  auto workers = Ready(3);
  ASSERT_OK_AND_ASSIGN(const Placement first, PlaceSession("s", std::nullopt, workers, {}));
  At(workers, first.pin.worker).inflight = 1;  // 1 <= 1.25 * 1/3 + 1
  ASSERT_OK_AND_ASSIGN(const Placement still, PlaceSession("s", std::nullopt, workers, {}));
  EXPECT_EQ(still.pin.worker, first.pin.worker);
  At(workers, first.pin.worker).inflight = 5;  // 5 > 1.25 * 5/3 + 1
  ASSERT_OK_AND_ASSIGN(const Placement other, PlaceSession("s", std::nullopt, workers, {}));
  EXPECT_NE(other.pin.worker, first.pin.worker);
  EXPECT_EQ(other.reason, PlacementReason::kLoad);
}

TEST(PlacementTest, RepinsUnderTheNextEpochWhenTheWorkerIsLost) {
  auto workers = Ready(2);
  workers[0].health = WorkerHealth::kDown;
  ASSERT_OK_AND_ASSIGN(const Placement p, PlaceSession("s", PinAt("w1", 4), workers, {}));
  EXPECT_EQ(p, (Placement{PinAt("w2", 5), PlacementReason::kWorkerLost}));
  ASSERT_OK_AND_ASSIGN(const Placement gone, PlaceSession("s", PinAt("old", 4), workers, {}));
  EXPECT_EQ(gone, (Placement{PinAt("w2", 5), PlacementReason::kWorkerLost}));
}

TEST(PlacementTest, LeavesADrainingWorker) {
  auto workers = Ready(2);
  workers[0].health = WorkerHealth::kDraining;
  ASSERT_OK_AND_ASSIGN(const Placement p, PlaceSession("s", PinAt("w1", 4), workers, {}));
  EXPECT_EQ(p, (Placement{PinAt("w2", 5), PlacementReason::kDrain}));
}

TEST(PlacementTest, AvoidsWhoFailedThisRequest) {
  const auto workers = Ready(2);
  const Avoided avoided{WorkerId("w1"), PlacementReason::kOverload};
  ASSERT_OK_AND_ASSIGN(const Placement p, PlaceSession("s", PinAt("w1", 4), workers, {{avoided}}));
  EXPECT_EQ(p, (Placement{PinAt("w2", 5), PlacementReason::kOverload}));
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK_AND_ASSIGN(const WorkerId any,
                         PlaceAnywhere(std::to_string(i), workers, {{avoided}}));
    EXPECT_EQ(any, WorkerId("w2"));
  }
}

TEST(PlacementTest, SaysWhyNobodyCanTakeIt) {
  auto workers = Ready(2);
  for (WorkerView& worker : workers) worker.health = WorkerHealth::kDown;
  const auto none = PlaceSession("s", std::nullopt, workers, {});
  EXPECT_THAT(none, ReasonIs(Reason::kNoWorker));
  EXPECT_TRUE(common::InfoOf(none.status()).retry_after.has_value());
  EXPECT_THAT(PlaceAnywhere("k", workers, {}), ReasonIs(Reason::kNoWorker));
  workers[1].health = WorkerHealth::kDraining;
  EXPECT_THAT(PlaceSession("s", PinAt("w2", 1), workers, {}), ReasonIs(Reason::kDraining));
}

TEST(PlacementTest, WithoutASessionTheLeastLoadWins) {
  auto workers = Ready(3);
  workers[0].inflight = 2;
  workers[2].inflight = 2;
  ASSERT_OK_AND_ASSIGN(const WorkerId any, PlaceAnywhere("k", workers, {}));
  EXPECT_EQ(any, WorkerId("w2"));
}

TEST(PlacementTest, EveryReasonHasAName) {
  for (int i = 0; i <= static_cast<int>(PlacementReason::kOverload); ++i) {
    EXPECT_FALSE(NameOf(static_cast<PlacementReason>(i)).empty());
  }
}

}  // namespace
}  // namespace loopserve::router
