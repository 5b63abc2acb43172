#include "router/routing.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "tests/support/manual_clock.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Epoch;
using common::MakeError;
using common::Reason;
using common::SessionId;
using common::WorkerId;
using testing::ReasonIs;

class RoutingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(directory_, CreateDirectory("embedded"));
    routing_ = std::make_unique<Routing>(*directory_, table_, router_metrics_,
                                         common::Logger::Null(), clock_, absl::Seconds(3));
    Up("w1");
    Up("w2");
    Up("w3");
  }

  void Up(const std::string& id) {
    table_.OnInfo(WorkerId(id), {.instance_id = "i", .model = "m"});
    table_.OnLearned(WorkerId(id), "i");
  }
  std::optional<Pin> Pinned(const std::string& session) {
    return *directory_->Find(SessionId(session));
  }
  static RouteState For(const std::string& session, bool create = false) {
    RouteState state;
    state.session = SessionId(session);
    state.request_id = "r";
    state.model = "m";
    state.create = create;
    return state;
  }
  RouteState Chosen(const std::string& session, bool create = false) {
    RouteState state = For(session, create);
    EXPECT_OK(routing_->Choose(state));
    return state;
  }

  testing::ManualClock clock_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("router");
  RouterMetrics router_metrics_{*metrics_, {WorkerId("w1"), WorkerId("w2"), WorkerId("w3")}};
  WorkerTable table_{{{WorkerId("w1"), "h:1"}, {WorkerId("w2"), "h:2"}, {WorkerId("w3"), "h:3"}}};
  std::unique_ptr<SessionDirectory> directory_;
  std::unique_ptr<Routing> routing_;
};

const absl::Status kGone = absl::UnavailableError("connection refused");

TEST_F(RoutingTest, PinsANewSessionAndKeepsIt) {
  const RouteState first = Chosen("s", true);
  EXPECT_EQ(first.affinity, Affinity::kInitialize);
  EXPECT_EQ(first.ref().epoch, Epoch(1));
  EXPECT_EQ(Pinned("s"), first.pin);
  const RouteState second = Chosen("s");
  EXPECT_EQ(second.affinity, Affinity::kRetain);
  EXPECT_EQ(second.pin, first.pin);
}

TEST_F(RoutingTest, ALostWorkerIsDownAndTheSessionMovesUnderAHigherEpoch) {
  RouteState state = Chosen("s", true);
  const Pin before = state.pin;
  EXPECT_OK(routing_->AfterFailure(state, kGone));
  EXPECT_OK(routing_->Choose(state));
  EXPECT_NE(state.worker(), before.worker);
  EXPECT_EQ(state.pin.epoch, Epoch(2));
  EXPECT_EQ(Pinned("s"), state.pin);
  EXPECT_FALSE(table_.AwaitHealth(before.worker, WorkerHealth::kReady, absl::ZeroDuration()));
}

TEST_F(RoutingTest, GivesUpAfterThreeTries) {
  RouteState state = Chosen("s", true);
  EXPECT_OK(routing_->AfterFailure(state, kGone));
  EXPECT_OK(routing_->Choose(state));
  EXPECT_OK(routing_->AfterFailure(state, kGone));
  EXPECT_OK(routing_->Choose(state));
  const absl::Status end = routing_->AfterFailure(state, kGone);
  EXPECT_THAT(end, ReasonIs(Reason::kNoWorker));
  EXPECT_TRUE(common::InfoOf(end).retry_after.has_value());
}

TEST_F(RoutingTest, AWorkerLostBeforeItSpokeWithNobodyLeftIsNoWorkerForNow) {
  table_.OnLost(WorkerId("w2"), "gone");
  table_.OnLost(WorkerId("w3"), "gone");
  for (const std::string session : {"s", ""}) {
    RouteState state = Chosen(session, true);
    const absl::Status end = routing_->AfterFailure(state, kGone);
    EXPECT_THAT(end, ReasonIs(Reason::kNoWorker));
    EXPECT_EQ(end.code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(common::InfoOf(end).retry_after.has_value());
    Up("w1");
  }
}

TEST_F(RoutingTest, TheLastWorkersRefusalSaysWhenToTryAgain) {
  table_.OnLost(WorkerId("w2"), "gone");
  table_.OnLost(WorkerId("w3"), "gone");
  RouteState state = Chosen("s", true);
  const absl::Status end = routing_->AfterFailure(state, MakeError(Reason::kDraining, "draining"));
  EXPECT_THAT(end, ReasonIs(Reason::kDraining));
  EXPECT_TRUE(common::InfoOf(end).retry_after.has_value());
}

TEST_F(RoutingTest, TakesTheEpochFromAStaleOne) {
  RouteState state = Chosen("s");
  const WorkerId worker = state.worker();
  const absl::Status stale =
      MakeError(common::ErrorInfo{.reason = Reason::kStaleEpoch, .current_epoch = 41}, "too old");
  EXPECT_OK(routing_->AfterFailure(state, stale));
  EXPECT_OK(routing_->Choose(state));
  EXPECT_EQ(state.pin, (Pin{worker, Epoch(42)}));
  EXPECT_EQ(Pinned("s"), state.pin);
}

TEST_F(RoutingTest, NeverShowsAStaleEpochToTheClient) {
  RouteState state = Chosen("s");
  const absl::Status stale =
      MakeError(common::ErrorInfo{.reason = Reason::kStaleEpoch, .current_epoch = 9}, "too old");
  absl::Status status;
  for (int i = 0; i < 10 && status.ok(); ++i) {
    status = routing_->AfterFailure(state, stale);
    if (status.ok()) {
      EXPECT_OK(routing_->Choose(state));
    }
  }
  EXPECT_THAT(status, ReasonIs(Reason::kSessionBusy));
  EXPECT_TRUE(common::InfoOf(status).retry_after.has_value());
}

TEST_F(RoutingTest, WhoeverWasFasterWithAStaleEpochCounts) {
  RouteState state = Chosen("s");
  ASSERT_OK(
      directory_->CompareAndSwap(SessionId("s"), state.pin.epoch, Pin{WorkerId("w3"), Epoch(100)}));
  const absl::Status stale =
      MakeError(common::ErrorInfo{.reason = Reason::kStaleEpoch, .current_epoch = 50}, "too old");
  EXPECT_OK(routing_->AfterFailure(state, stale));
  EXPECT_OK(routing_->Choose(state));
  EXPECT_EQ(state.pin, (Pin{WorkerId("w3"), Epoch(100)}));
}

TEST_F(RoutingTest, ADrainingWorkerIsLeftAndNotBlamed) {
  RouteState state = Chosen("s", true);
  const WorkerId before = state.worker();
  EXPECT_OK(routing_->AfterFailure(state, MakeError(Reason::kDraining, "draining")));
  EXPECT_OK(routing_->Choose(state));
  EXPECT_NE(state.worker(), before);
  EXPECT_TRUE(table_.AwaitHealth(before, WorkerHealth::kReady, absl::ZeroDuration()));
}

TEST_F(RoutingTest, AFullWorkerIsLeftOnlyByWhatHasNoHistoryThere) {
  const absl::Status full = MakeError(Reason::kQueueFull, "full");
  RouteState fresh = Chosen("s", true);
  EXPECT_OK(routing_->AfterFailure(fresh, full));
  RouteState known = Chosen("s2", true);
  known.create = false;
  EXPECT_THAT(routing_->AfterFailure(known, full), ReasonIs(Reason::kQueueFull));
}

TEST_F(RoutingTest, AsksAroundForASessionThatNobodyIsKnownToHave) {
  RouteState state = For("s");
  absl::flat_hash_set<WorkerId> asked;
  absl::Status status;
  while (status.ok()) {
    ASSERT_OK(routing_->Choose(state));
    EXPECT_TRUE(asked.insert(state.worker()).second) << state.worker().value();
    status = routing_->AfterFailure(state, MakeError(Reason::kSessionNotFound, "none"));
  }
  EXPECT_THAT(status, ReasonIs(Reason::kSessionNotFound));
  EXPECT_EQ(asked.size(), 3u);
  EXPECT_EQ(Pinned("s"), std::nullopt);
}

TEST_F(RoutingTest, AskingAroundLeavesTriesForTheOneThatHasIt) {
  RouteState state = Chosen("s");
  for (int others = 0; others < 2; ++others) {
    ASSERT_OK(routing_->AfterFailure(state, MakeError(Reason::kSessionNotFound, "none")));
    ASSERT_OK(routing_->Choose(state));
  }
  const WorkerId owner = state.worker();
  const absl::Status stale =
      MakeError(common::ErrorInfo{.reason = Reason::kStaleEpoch, .current_epoch = 41}, "too old");
  EXPECT_OK(routing_->AfterFailure(state, stale));
  EXPECT_OK(routing_->Choose(state));
  EXPECT_EQ(state.pin, (Pin{owner, Epoch(42)}));
}

TEST_F(RoutingTest, ForgetsASessionItsWorkerDoesNotHave) {
  Chosen("s", true);
  RouteState state = Chosen("s");
  EXPECT_THAT(routing_->AfterFailure(state, MakeError(Reason::kSessionNotFound, "none")),
              ReasonIs(Reason::kSessionNotFound));
  EXPECT_EQ(Pinned("s"), std::nullopt);
}

TEST_F(RoutingTest, ASessionWhoseOwnerIsAwayKeepsItsPlace) {
  ASSERT_OK(
      directory_->CompareAndSwap(SessionId("s"), std::nullopt, Pin{WorkerId("w1"), Epoch(6)}));
  table_.OnLost(WorkerId("w1"), "gone");
  RouteState state = Chosen("s");
  EXPECT_EQ(state.affinity, Affinity::kSwitch);
  EXPECT_EQ(state.pin.epoch, Epoch(7));
  EXPECT_THAT(routing_->AfterFailure(state, MakeError(Reason::kSessionNotFound, "none")),
              ReasonIs(Reason::kNoWorker));
  EXPECT_EQ(Pinned("s"), (Pin{WorkerId("w1"), Epoch(6)}));
  Up("w1");
  EXPECT_EQ(Chosen("s").pin, (Pin{WorkerId("w1"), Epoch(6)}));
}

TEST_F(RoutingTest, OtherErrorsAreTheClients) {
  RouteState state = Chosen("s", true);
  const absl::Status error = MakeError(Reason::kContextLengthExceeded, "too long");
  EXPECT_EQ(routing_->AfterFailure(state, error), error);
  EXPECT_EQ(Pinned("s"), state.pin);
}

TEST_F(RoutingTest, ABrokenStreamIsWorkerLostAndOtherwiseItself) {
  const RouteState state = Chosen("s", true);
  const absl::Status bug = absl::InternalError("bug");
  EXPECT_EQ(routing_->AfterBrokenStream(state, bug), bug);
  const absl::Status stale = MakeError(Reason::kStaleEpoch, "claimed elsewhere");
  EXPECT_THAT(routing_->AfterBrokenStream(state, stale), ReasonIs(Reason::kSessionBusy));
  EXPECT_TRUE(table_.AwaitHealth(state.worker(), WorkerHealth::kReady, absl::ZeroDuration()));
  EXPECT_THAT(routing_->AfterBrokenStream(state, kGone), ReasonIs(Reason::kWorkerLost));
  EXPECT_FALSE(table_.AwaitHealth(state.worker(), WorkerHealth::kReady, absl::ZeroDuration()));
}

TEST_F(RoutingTest, WithoutASessionNothingIsPinned) {
  RouteState state = For("");
  EXPECT_OK(routing_->Choose(state));
  EXPECT_EQ(state.affinity, Affinity::kNone);
  EXPECT_EQ(directory_->counts().sessions, 0u);
  EXPECT_OK(routing_->AfterFailure(state, kGone));
  const WorkerId before = state.worker();
  EXPECT_OK(routing_->Choose(state));
  EXPECT_NE(state.worker(), before);
}

TEST_F(RoutingTest, UnknownSessionsWaitForEveryReportAfterTheStart) {
  WorkerTable table{{{WorkerId("w1"), "h:1"}, {WorkerId("w2"), "h:2"}}};
  Routing routing(*directory_, table, router_metrics_, common::Logger::Null(), clock_,
                  absl::Seconds(3));
  table.OnInfo(WorkerId("w1"), {.instance_id = "i", .model = "m"});
  table.OnLearned(WorkerId("w1"), "i");
  RouteState unknown = For("u");
  EXPECT_THAT(routing.Choose(unknown), ReasonIs(Reason::kLoading));
  RouteState fresh = For("f", true);
  EXPECT_OK(routing.Choose(fresh));
  clock_.Advance(absl::Seconds(4));
  EXPECT_OK(routing.Choose(unknown));
}

// A router that has just been started: w1 is up, w2 was not asked yet.
class LearningTest : public RoutingTest {
 protected:
  void SetUp() override {
    RoutingTest::SetUp();
    fresh_ = std::make_unique<Routing>(*directory_, fresh_table_, router_metrics_,
                                       common::Logger::Null(), clock_, absl::Seconds(3));
    IsUp("w1");
  }
  void Answers(const std::string& id) {
    fresh_table_.OnInfo(WorkerId(id), {.instance_id = "i", .model = "m"});
  }
  void IsUp(const std::string& id) {
    Answers(id);
    fresh_table_.OnLearned(WorkerId(id), "i");
  }
  void Reports(const std::string& worker, bool owned) {
    const SessionSighting seen{SessionId("s"), Epoch(5), owned};
    directory_->Learn(WorkerId(worker), {&seen, 1});
  }
  absl::Status Choose(const std::string& session = "s") {
    state_ = For(session);
    return fresh_->Choose(state_);
  }

  WorkerTable fresh_table_{{{WorkerId("w1"), "h:1"}, {WorkerId("w2"), "h:2"}}};
  std::unique_ptr<Routing> fresh_;
  RouteState state_;
};

TEST_F(LearningTest, AWorkerThatMerelyKnowsOfASessionWaitsForItsOwner) {
  Reports("w1", false);
  EXPECT_THAT(Choose(), ReasonIs(Reason::kLoading));
  Reports("w2", true);
  IsUp("w2");
  EXPECT_OK(Choose());
  EXPECT_EQ(state_.pin, (Pin{WorkerId("w2"), Epoch(5)}));
  EXPECT_EQ(state_.affinity, Affinity::kRetain);
}

TEST_F(LearningTest, AnOwnerWhoseReportIsUnderWayIsNotLostHoweverLongItTakes) {
  Answers("w2");
  Reports("w2", true);
  EXPECT_THAT(Choose(), ReasonIs(Reason::kLoading));
  clock_.Advance(absl::Seconds(60));
  EXPECT_THAT(Choose(), ReasonIs(Reason::kLoading));
  EXPECT_THAT(Choose("unknown"), ReasonIs(Reason::kLoading));
  IsUp("w2");
  EXPECT_OK(Choose());
  EXPECT_EQ(state_.pin, (Pin{WorkerId("w2"), Epoch(5)}));
}

TEST_F(LearningTest, AnOwnerWhoseReportFailedIsWaitedForAsOneThatIsSilent) {
  Answers("w2");
  Reports("w2", true);
  fresh_table_.OnCheckFailed(WorkerId("w2"), "its report broke off");
  EXPECT_THAT(Choose(), ReasonIs(Reason::kLoading));
  clock_.Advance(absl::Seconds(4));
  EXPECT_OK(Choose());
  EXPECT_EQ(state_.pin, (Pin{WorkerId("w1"), Epoch(6)}));
}

TEST_F(LearningTest, AnOwnerThatDiesAfterItsReportIsLostAtOnce) {
  Reports("w1", true);
  fresh_table_.OnLost(WorkerId("w1"), "gone");
  EXPECT_THAT(Choose(), ReasonIs(Reason::kNoWorker)) << "not LOADING, though w2 is silent";
}

TEST_F(LearningTest, AKnownOwnerDoesNotWaitForTheOthers) {
  Reports("w1", true);
  EXPECT_OK(Choose());
  EXPECT_EQ(state_.pin, (Pin{WorkerId("w1"), Epoch(5)}));
}

TEST_F(LearningTest, WithoutItsOwnerASessionGoesToWhoKnowsOfIt) {
  Reports("w1", false);
  clock_.Advance(absl::Seconds(4));
  EXPECT_OK(Choose());
  EXPECT_EQ(state_.pin.epoch, Epoch(5)) << "it is for the worker to say whose that is";
  const auto stale = MakeError({.reason = Reason::kStaleEpoch, .current_epoch = 5}, "another's");
  EXPECT_OK(fresh_->AfterFailure(state_, stale));
  EXPECT_OK(fresh_->Choose(state_));
  EXPECT_EQ(state_.pin, (Pin{WorkerId("w1"), Epoch(6)}));
  Reports("w2", true);  // back, and too late
  EXPECT_EQ(Pinned("s"), state_.pin);
}

TEST_F(LearningTest, AnIdThatWasMadeUpIsNobodys) {
  RouteState fresh = For("s", true);
  EXPECT_OK(fresh_->Choose(fresh));
}

TEST_F(LearningTest, WhoHasServedASessionOwnsIt) {
  for (int i = 0; i < 20; ++i) {  // by their weights, some would go to w2
    const SessionSighting seen{SessionId(absl::StrCat("s-", i)), Epoch(5)};
    directory_->Learn(WorkerId("w1"), {&seen, 1});
  }
  clock_.Advance(absl::Seconds(4));
  for (int i = 0; i < 20; ++i) {
    const SessionSighting seen{SessionId(absl::StrCat("s-", i)), Epoch(5)};
    EXPECT_OK(Choose(seen.id.value()));
    fresh_->Used(state_, false);
    EXPECT_FALSE(Pinned(seen.id.value())->certain);
    fresh_->Used(state_, true);
    directory_->Learn(WorkerId("w2"), {&seen, 1});
    EXPECT_EQ(Pinned(seen.id.value()), (Pin{WorkerId("w1"), Epoch(5)}));
  }
}

TEST_F(RoutingTest, DropsPinsWhoseTimeIsOver) {
  router_metrics_.AddModel("m");
  const RouteState state = Chosen("s", true);
  directory_->SetLifetime(SessionId("s"), {.used = clock_.Now(), .ttl = absl::Seconds(10)});
  clock_.Advance(absl::Seconds(9));
  routing_->Used(state, true);
  clock_.Advance(absl::Seconds(9));
  routing_->TrimDirectory({});
  EXPECT_TRUE(Pinned("s").has_value());
  clock_.Advance(absl::Seconds(1));
  routing_->TrimDirectory({SessionId("s")});
  EXPECT_TRUE(Pinned("s").has_value());
  routing_->TrimDirectory({});
  EXPECT_EQ(Pinned("s"), std::nullopt);
  EXPECT_EQ(router_metrics_.directory_events()[DirectoryEvent::kExpire].value(), 1);
  EXPECT_EQ(router_metrics_.directory_events()[DirectoryEvent::kEvict].value(), 0);
  EXPECT_EQ(router_metrics_.ForModel("m").moves[MoveReason::kTtl].value(), 1);
}

TEST_F(RoutingTest, DropsTheLongestUnusedPinsOfTooMany) {
  ASSERT_OK_AND_ASSIGN(directory_, CreateDirectory("embedded", {.max_pins = 2}));
  Routing routing(*directory_, table_, router_metrics_, common::Logger::Null(), clock_,
                  absl::Seconds(3));
  std::vector<RouteState> states;
  for (const char* id : {"a", "b", "c"}) {
    states.push_back(For(id, true));
    ASSERT_OK(routing.Choose(states.back()));
  }
  routing.Used(states[0], true);
  routing.TrimDirectory({});
  EXPECT_EQ(Pinned("b"), std::nullopt);
  EXPECT_EQ(directory_->counts().sessions, 2u);
  EXPECT_EQ(router_metrics_.directory_events()[DirectoryEvent::kEvict].value(), 1);
  EXPECT_EQ(router_metrics_.directory_events()[DirectoryEvent::kExpire].value(), 0);
}

TEST(IsWorkerLostTest, TellsTransportFromAnswers) {
  EXPECT_TRUE(IsWorkerLost(kGone));
  EXPECT_TRUE(IsWorkerLost(absl::CancelledError()));
  EXPECT_TRUE(IsWorkerLost(MakeError(Reason::kWorkerLost, "")));
  EXPECT_FALSE(IsWorkerLost(MakeError(Reason::kDraining, "")));
  EXPECT_FALSE(IsWorkerLost(MakeError(Reason::kNoWorker, "")));
  EXPECT_FALSE(IsWorkerLost(absl::InternalError("")));
  EXPECT_FALSE(IsWorkerLost(absl::OkStatus()));
}

}  // namespace
}  // namespace loopserve::router
