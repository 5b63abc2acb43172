// Stories of sessions, workers that come and go, and clients that do not behave.
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "common/error.h"
#include "tests/scenario/cluster.h"
#include "tests/support/patience.h"
#include "tests/support/status_matchers.h"

namespace loopserve::testing {
namespace {

using common::MakeError;
using common::Reason;
using router::RouterConfig;

// Until the first turn chose one, it is not known which worker a session goes to.
int WorkerOf(OpenTurn& turn) { return turn.outcome().started.worker_id() == "w1" ? 1 : 2; }
int WorkerOf(OpenTurn&& turn) { return WorkerOf(turn); }
int Other(int n) { return 3 - n; }

FakeRecord RecordOf(Cluster& cluster, int worker, const std::string& id) {
  absl::MutexLock lock(&cluster.store(worker).mutex);
  return cluster.store(worker).sessions[id];
}

void AwaitQueued(Cluster& cluster, uint32_t count) {
  admin::v1::GetClusterStateResponse state;
  do {
    grpc::ClientContext context;
    ASSERT_TRUE(cluster.admin()->GetClusterState(&context, {}, &state).ok());
  } while (state.queued() != count);
}

TEST(AffinityTest, ASessionStaysWithItsWorker) {
  Cluster cluster({.workers = 2});
  Session session(cluster);
  OpenTurn first = session.Says("hi");
  first.Expect(Answers()).Expect(HasHeader("x-session-affinity", "initialize"));
  const int home = WorkerOf(first);
  EXPECT_EQ(first.outcome().started.turn(), 0u);
  EXPECT_EQ(session.id.substr(0, 2), "s-");
  EXPECT_TRUE(cluster.worker(home).last_turn()->create());
  for (int turn = 1; turn < 5; ++turn) {
    session.Says("and then?")
        .Expect(Answers())
        .OnWorker(home)
        .Expect(HasHeader("x-session-affinity", "retain"))
        .Expect(HasHeader("x-session-id", session.id));
    EXPECT_FALSE(cluster.worker(home).last_turn()->create());
  }
  EXPECT_EQ(RecordOf(cluster, home, session.id).turns, 5u);
  EXPECT_EQ(RecordOf(cluster, home, session.id).epoch, 1u);
  EXPECT_EQ(cluster.worker(Other(home)).turns(), 0);
}

TEST(AffinityTest, ManySessionsUseEveryWorker) {
  Cluster cluster({.workers = 2});
  for (int i = 0; i < 40; ++i) Session(cluster).Says("hi").Expect(Answers());
  EXPECT_GT(cluster.worker(1).turns(), 5);
  EXPECT_GT(cluster.worker(2).turns(), 5);
}

TEST(LostWorkerTest, BeforeTheFirstTokenNobodyNotices) {
  Cluster cluster({.workers = 2, .shared_store = true});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.worker(home).Next(TurnPlan::Hangs());
  session.Says("more")
      .WhenAsked(home, 2)
      .Then(Kill(home))
      .Expect(Answers())
      .OnWorker(Other(home))
      .Expect(HasHeader("x-session-affinity", "switch"));
  EXPECT_EQ(cluster.worker(Other(home)).last_turn()->session().epoch(), 2u);
  session.Says("and more").Expect(Answers()).OnWorker(Other(home));
  EXPECT_EQ(RecordOf(cluster, 1, session.id).turns, 3u);
}

TEST(LostWorkerTest, ARetryCarriesTheSameTurnId) {
  Cluster cluster({.workers = 2, .shared_store = true});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.worker(home).Next(TurnPlan::Hangs());
  OpenTurn turn = session.Says("more");
  turn.WhenAsked(home, 2);
  const std::string turn_id = cluster.worker(home).last_turn()->turn().turn_id();
  EXPECT_FALSE(turn_id.empty());
  turn.Then(Kill(home)).Expect(Answers());
  EXPECT_EQ(cluster.worker(Other(home)).last_turn()->turn().turn_id(), turn_id);
}

TEST(LostWorkerTest, AfterTheFirstTokenTheClientIsTold) {
  Cluster cluster({.workers = 2, .shared_store = true});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.worker(home).Next(TurnPlan::Hangs(1));
  session.Says("more").AfterFirstToken().Then(Kill(home)).Expect(FailsWith(Reason::kWorkerLost));
  EXPECT_EQ(cluster.worker(Other(home)).turns(), 0);
  session.Says("more").Expect(Answers()).OnWorker(Other(home));
}

TEST(LostWorkerTest, ADeadWorkerThatNobodyNoticedYet) {
  Cluster cluster({.workers = 2, .shared_store = true, .config = [](RouterConfig& config) {
                     config.check_interval = absl::Hours(1);
                   }});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.Kill(home);
  session.Says("more").Expect(Answers()).OnWorker(Other(home));
}

TEST(LostWorkerTest, BeforeTheFirstTokenWithNobodyElseTheClientMayTryAgain) {
  Cluster cluster({.workers = 1});
  Session session(cluster);
  session.Says("hi").Expect(Answers());
  cluster.worker(1).Next(TurnPlan::Hangs());
  session.Says("more").WhenAsked(1, 2).Then(Kill(1)).Expect(FailsForNowWith(Reason::kNoWorker));
  const std::string text = cluster.Metrics();
  for (const char* line :
       {"loopserve_request_aborted_total{model=\"tiny\",reason=\"worker_lost\"} 1",
        "loopserve_request_rejected_total{model=\"tiny\",reason=\"no_worker\"} 0"}) {
    EXPECT_TRUE(absl::StrContains(text, line)) << line;
  }
  cluster.Restart(1, /*keep=*/true);
  cluster.AwaitUp(1);
  session.Says("more").Expect(Answers()).OnWorker(1);
}

TEST(LostWorkerTest, WithNobodyLeftTheClientMayTryAgain) {
  Cluster cluster({.workers = 1});
  Session session(cluster);
  session.Says("hi").Expect(Answers());
  cluster.Kill(1);
  cluster.AwaitDown(1);
  session.Says("more").Expect(FailsForNowWith(Reason::kNoWorker));
  cluster.Restart(1, /*keep=*/true);
  cluster.AwaitUp(1);
  session.Says("more").Expect(Answers()).OnWorker(1);
}

TEST(LostWorkerTest, ASessionThatOnlyTheLostWorkerHasWaitsForIt) {
  Cluster cluster({.workers = 2});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.Kill(home);
  cluster.AwaitDown(home);
  session.Says("more").Expect(FailsForNowWith(Reason::kNoWorker));
  session.Says("more").Expect(FailsForNowWith(Reason::kNoWorker));
  cluster.Restart(home, /*keep=*/true);
  cluster.AwaitUp(home);
  session.Says("more").Expect(Answers()).OnWorker(home);
  cluster.Restart(home, /*keep=*/false);
  cluster.AwaitUp(home);
  session.Says("more").Expect(FailsWith(Reason::kSessionNotFound));
}

TEST(StaleEpochTest, IsRecoveredUnderANewerOne) {
  Cluster cluster({.workers = 1});
  Session session(cluster);
  session.Says("hi").Expect(Answers());
  {
    absl::MutexLock lock(&cluster.store(1).mutex);
    cluster.store(1).sessions[session.id].epoch = 41;
  }
  session.Says("more").Expect(Answers());
  EXPECT_EQ(RecordOf(cluster, 1, session.id).epoch, 42u);
  EXPECT_TRUE(absl::StrContains(
      cluster.Metrics(), "loopserve_worker_retries_total{reason=\"stale_epoch\",worker=\"w1\"} 1"));
}

TEST(BusySessionTest, OneTurnAtATime) {
  Cluster cluster({.workers = 1});
  Session session(cluster);
  session.Says("hi").Expect(Answers());
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  OpenTurn running = session.Says("tell me");
  running.AfterFirstToken();
  session.Says("me too").Expect(FailsForNowWith(Reason::kSessionBusy));
  Session(cluster).Says("another session").Expect(Answers());
  running.Cancel().Expect([](const Outcome& outcome) {
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kCancelled);
  });
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(1));
}

TEST(QueueTest, RefusesEarlyAndStartsInOrder) {
  Cluster cluster({.workers = 1, .config = [](RouterConfig& config) {
                     config.max_inflight = 1;
                     config.max_queue = 1;
                   }});
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  Session first(cluster), second(cluster), third(cluster);
  OpenTurn running = first.Says("one");
  running.AfterFirstToken();
  OpenTurn waiting = second.Says("two");
  AwaitQueued(cluster, 1);
  third.Says("three").Expect(FailsForNowWith(Reason::kQueueFull));
  running.Cancel();
  waiting.Expect(Answers()).Expect(HasHeader("x-queue-position", "1"));
  third.Says("three").Expect(Answers());
}

TEST(QueueTest, NobodyWaitsForEver) {
  Cluster cluster({.workers = 1, .config = [](RouterConfig& config) { config.max_inflight = 1; }});
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  Session first(cluster), second(cluster);
  OpenTurn running = first.Says("one");
  running.AfterFirstToken();
  OpenTurn waiting = second.Says("two");
  AwaitQueued(cluster, 1);
  cluster.clock.Advance(absl::Minutes(1));
  waiting.Expect(FailsWith(Reason::kQueueTimeout));
  running.Cancel();
}

TEST(CancelTest, ReachesTheWorkerAndLeavesNoTrace) {
  Cluster cluster({.workers = 1});
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  Session session(cluster);
  session.Says("hi").AfterFirstToken().Cancel();
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(1));
  cluster.worker(1).Next(TurnPlan::Hangs(0));
  Session(cluster).Says("hi").WhenAsked(1, 2).Cancel();
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(2));
  Session(cluster).Says("next").Expect(Answers());
}

TEST(CancelTest, InTheQueueFreesThePlace) {
  Cluster cluster({.workers = 1, .config = [](RouterConfig& config) {
                     config.max_inflight = 1;
                     config.max_queue = 1;
                   }});
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  Session first(cluster), second(cluster), third(cluster);
  OpenTurn running = first.Says("one");
  running.AfterFirstToken();
  {
    OpenTurn waiting = second.Says("two");
    AwaitQueued(cluster, 1);
    waiting.Cancel();
  }
  AwaitQueued(cluster, 0);
  OpenTurn waiting = third.Says("three");
  AwaitQueued(cluster, 1);
  running.Cancel();
  waiting.Expect(Answers());
}

TEST(DeadlineTest, EndsTheTurnAndTheWorkersCall) {
  Cluster cluster({.workers = 1});
  cluster.worker(1).Next(TurnPlan::Hangs());
  Session session(cluster);
  session.Says("hi", absl::Seconds(2)).Expect([](const Outcome& outcome) {
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded) << outcome.status;
  });
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(1));
  Session(cluster).Says("next").Expect(Answers());
}

TEST(DeadlineTest, TheServersCapHoldsWhereTheClientHasNone) {
  Cluster cluster({.workers = 1, .config = [](RouterConfig& config) {
                     config.max_turn_time = absl::Seconds(2);  // the turn reaches the worker before
                   }});
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  Session session(cluster);
  session.Says("hi").Expect(FailsWith(Reason::kDeadline));
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(1));
}

TEST(DrainTest, ADrainingWorkerIsLeftForAnother) {
  Cluster cluster({.workers = 2, .shared_store = true});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.worker(home).SetDraining(true);
  cluster.AwaitDraining(home);
  session.Says("more")
      .Expect(Answers())
      .OnWorker(Other(home))
      .Expect(HasHeader("x-session-affinity", "switch"));
}

TEST(DrainTest, AWorkerThatRefusesForDrainingIsLeftForAnother) {
  Cluster cluster({.workers = 2, .shared_store = true});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.worker(home).Next(TurnPlan::Fails(MakeError(Reason::kDraining, "draining")));
  session.Says("more").Expect(Answers()).OnWorker(Other(home));
}

TEST(DrainTest, TheRouterFinishesWhatRunsAndRefusesTheRest) {
  Cluster cluster({.workers = 1, .config = [](RouterConfig& config) {
                     config.drain_timeout = absl::Minutes(1);
                   }});
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  Session session(cluster);
  OpenTurn running = session.Says("hi");
  running.AfterFirstToken();
  std::thread drain([&cluster] { cluster.router().Drain(); });
  for (bool refused = false; !refused;) {
    Session other(cluster);
    OpenTurn late = other.Says("late");
    refused = common::HasReason(late.outcome().status, Reason::kDraining);
    if (refused) late.Expect(FailsForNowWith(Reason::kDraining));
  }
  running.Cancel();
  drain.join();
}

TEST(DrainTest, WhatDoesNotFinishIsEnded) {
  Cluster cluster({.workers = 1, .config = [](RouterConfig& config) {
                     config.drain_timeout = absl::Milliseconds(1);
                   }});
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  Session session(cluster);
  OpenTurn running = session.Says("hi");
  running.AfterFirstToken();
  cluster.router().Drain();
  running.Expect([](const Outcome& outcome) { EXPECT_FALSE(outcome.status.ok()); });
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(1));
  EXPECT_TRUE(absl::StrContains(
      cluster.Metrics(), "loopserve_request_aborted_total{model=\"tiny\",reason=\"shutdown\"} 1"));
}

TEST(RouterRestartTest, LearnsWhoHasWhatUnderWhichEpoch) {
  Cluster cluster({.workers = 2});
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<int> homes;
  for (int i = 0; i < 6; ++i) {
    sessions.push_back(std::make_unique<Session>(cluster));
    homes.push_back(WorkerOf(sessions.back()->Says("hi")));
    absl::MutexLock lock(&cluster.store(homes.back()).mutex);
    cluster.store(homes.back()).sessions[sessions.back()->id].epoch = 10 + i;
  }
  cluster.RestartRouter();
  EXPECT_EQ(cluster.router().directory().counts().sessions, 6u);
  for (int i = 0; i < 6; ++i) {
    sessions[i]->Says("more").Expect(Answers()).OnWorker(homes[i]).Expect(
        HasHeader("x-session-affinity", "retain"));
    EXPECT_EQ(RecordOf(cluster, homes[i], sessions[i]->id).epoch, 10u + i);
  }
}

TEST(RouterRestartTest, UnknownSessionsWaitForWorkersThatHaveNotSpoken) {
  Cluster cluster({.workers = 2});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.Kill(home);
  cluster.RestartRouter();
  session.Says("more").Expect(FailsForNowWith(Reason::kLoading));
  cluster.clock.Advance(absl::Minutes(1));
  session.Says("more").Expect(FailsWith(Reason::kSessionNotFound));
}

TEST(UnknownSessionTest, IsTakenFromItsOwnerOnlyUnderAHigherEpoch) {
  Cluster cluster({.workers = 2, .shared_store = true});
  for (int i = 0; i < 12; ++i) {
    Session session(cluster, absl::StrCat("unpinned-", i));
    {
      absl::MutexLock lock(&cluster.store(1).mutex);
      cluster.store(1).sessions[session.id] = {.epoch = 1, .turns = 3, .owner = "w2"};
    }
    const int taker = WorkerOf(session.Says("hi").Expect(Answers()));
    EXPECT_EQ(RecordOf(cluster, 1, session.id).epoch, taker == 2 ? 1u : 2u);
    EXPECT_EQ(RecordOf(cluster, 1, session.id).turns, 4u);
  }
}

TEST(UnknownSessionTest, IsFoundInTheStoreOrNotAtAll) {
  Cluster cluster({.workers = 2, .shared_store = true});
  Session unknown(cluster, "nobody knows me");
  unknown.Says("hi").Expect(FailsWith(Reason::kSessionNotFound));
  EXPECT_EQ(cluster.router().directory().counts().sessions, 0u);
  {
    absl::MutexLock lock(&cluster.store(1).mutex);
    cluster.store(1).sessions["from elsewhere"] = {.epoch = 7, .turns = 3};
  }
  Session known(cluster, "from elsewhere");
  known.Says("hi").Expect(Answers());
  EXPECT_EQ(RecordOf(cluster, 1, "from elsewhere").epoch, 8u);
  EXPECT_EQ(RecordOf(cluster, 1, "from elsewhere").turns, 4u);
}

TEST(OverloadTest, ANewSessionGoesToAWorkerWithRoom) {
  Cluster cluster({.workers = 2});
  const absl::Status full = MakeError(
      common::ErrorInfo{.reason = Reason::kQueueFull, .retry_after = absl::Seconds(2)}, "full");
  cluster.worker(1).Next(TurnPlan::Fails(full));
  Session session(cluster, "");
  for (int i = 0; i < 8; ++i) Session(cluster).Says("hi").Expect(Answers());
  cluster.worker(1).Next(TurnPlan::Fails(full));
  cluster.worker(2).Next(TurnPlan::Fails(full));
  Session(cluster).Says("hi").Expect(FailsForNowWith(Reason::kQueueFull));
}

TEST(InvalidRequestTest, NamesTheField) {
  Cluster cluster({.workers = 1});
  const auto send = [&cluster](const std::function<void(chat::v1::TurnRequest&)>& change) {
    chat::v1::TurnRequest request;
    request.add_messages()->set_content("hi");
    change(request);
    return OpenTurn(cluster, nullptr, request, std::nullopt).outcome();
  };
  const std::string long_id(257, 'x');
  FailsWithField("session_id")(send([&](auto& r) { r.set_session_id(long_id); }));
  FailsWithField("session_id")(send([](auto& r) { r.set_session_id("a\r\nx-evil: 1"); }));
  FailsWithField("turn_id")(send([](auto& r) { r.set_turn_id("\x7f"); }));
  FailsWithField("request_id")(send([&](auto& r) { r.set_request_id(long_id); }));
  FailsWithField("model")(send([](auto& r) { r.set_model("\n"); }));
  FailsWithField("messages[0].content")(
      send([](auto& r) { r.mutable_messages(0)->set_content("\xff\xfe"); }));
  FailsWithField("messages[1].role")(send([](auto& r) { r.add_messages()->set_role("\xc3"); }));
  FailsWithField("sampling.stop[1]")(send([](auto& r) {
    r.mutable_sampling()->add_stop("ok");
    r.mutable_sampling()->add_stop("\xed\xa0\x80");
  }));
  FailsWith(Reason::kModelNotFound)(send([](auto& r) { r.set_model("other"); }));
  FailsWith(Reason::kMessageTooLarge)(
      send([](auto& r) { r.mutable_messages(0)->set_content(std::string((4 << 20) + 1, 'x')); }));
  EXPECT_EQ(cluster.worker(1).turns(), 0);
  Answers()(send([](auto& r) { r.set_request_id(std::string(256, 'x')); }));
}

TEST(InvalidRequestTest, StrangeButLegalIdsTravelInHeadersEscaped) {
  Cluster cluster({.workers = 1});
  {
    absl::MutexLock lock(&cluster.store(1).mutex);
    cluster.store(1).sessions["日 %"] = {.epoch = 1, .holder = "w1", .owner = "w1"};
  }
  Session session(cluster, "日 %");
  session.Says("hi").Expect(Answers()).Expect(HasHeader("x-session-id", "%E6%97%A5%20%25"));
}

TEST(RequestIdTest, IsTheClientsOrMadeUp) {
  Cluster cluster({.workers = 1});
  chat::v1::TurnRequest request;
  request.set_request_id("mine");
  Session session(cluster);
  session.Sends(request).Expect(Answers()).Expect(HasHeader("x-request-id", "mine"));
  EXPECT_EQ(cluster.worker(1).last_headers().at("x-request-id"), "mine");
  OpenTurn other = session.Says("more");
  EXPECT_EQ(other.outcome().started.request_id().substr(0, 2), "r-");
}

TEST(EphemeralTest, LeavesNoPin) {
  Cluster cluster({.workers = 1});
  chat::v1::TurnRequest request;
  request.set_ephemeral(true);
  Session session(cluster);
  session.Sends(request).Expect(Answers());
  EXPECT_EQ(cluster.router().directory().counts().sessions, 0u);
}

TEST(WorkerErrorTest, IsPassedOnAndTheSessionStays) {
  Cluster cluster({.workers = 2});
  Session session(cluster);
  const int home = WorkerOf(session.Says("hi"));
  cluster.worker(home).Next(
      TurnPlan::Fails(MakeError(Reason::kContextLengthExceeded, "too long by 5")));
  session.Says("more").Expect(FailsWith(Reason::kContextLengthExceeded));
  cluster.worker(home).Next(TurnPlan::Fails(absl::InternalError("bug"), 2));
  session.Says("more").Expect(FailsWith(Reason::kInternal));
  session.Says("more").Expect(Answers()).OnWorker(home);
}

void AwaitPins(Cluster& cluster, size_t count) {
  EXPECT_TRUE(Becomes([&] { return cluster.router().directory().counts().sessions == count; }));
}

// What is counted shows in the metrics only just after it has happened.
void AwaitMetric(Cluster& cluster, const std::string& line) {
  ASSERT_TRUE(Becomes([&] { return absl::StrContains(cluster.Metrics(), line); })) << line;
}

Session CreateWithTtl(Cluster& cluster, const std::string& id, int64_t seconds) {
  session::v1::CreateSessionRequest request;
  request.set_session_id(id);
  request.mutable_ttl()->set_seconds(seconds);
  grpc::ClientContext context;
  session::v1::CreateSessionResponse response;
  EXPECT_TRUE(cluster.sessions()->CreateSession(&context, request, &response).ok());
  return Session(cluster, id);
}

TEST(TtlTest, APinGoesWithItsSession) {
  Cluster cluster({.workers = 2});
  Session mortal = CreateWithTtl(cluster, "mortal", 60);
  Session immortal(cluster);
  immortal.Says("hi").Expect(Answers());
  for (int turn = 0; turn < 3; ++turn) {
    cluster.clock.Advance(absl::Seconds(59));
    mortal.Says("still here").Expect(Answers()).Expect(HasHeader("x-session-affinity", "retain"));
  }
  cluster.clock.Advance(absl::Seconds(60));
  AwaitPins(cluster, 1);
  for (const char* line :
       {"loopserve_session_moves_total{model=\"tiny\",reason=\"ttl\"} 1",
        "loopserve_directory_events_total{kind=\"expire\"} 1",
        "loopserve_directory_events_total{kind=\"evict\"} 0", "loopserve_directory_sessions 1"}) {
    AwaitMetric(cluster, line);
  }
  mortal.Says("too late").Expect(FailsWith(Reason::kSessionNotFound));
  cluster.clock.Advance(absl::Hours(1000));
  immortal.Says("me too?").Expect(Answers()).Expect(HasHeader("x-session-affinity", "retain"));
}

TEST(TtlTest, ATurnUnderWayKeepsThePin) {
  Cluster cluster({.workers = 1});
  Session session = CreateWithTtl(cluster, "s", 60);
  CreateWithTtl(cluster, "other", 60);
  cluster.worker(1).Next(TurnPlan::Hangs(1));
  OpenTurn running = session.Says("tell me");
  running.AfterFirstToken();
  cluster.clock.Advance(absl::Seconds(60));
  AwaitPins(cluster, 1);
  running.Cancel();
  EXPECT_TRUE(cluster.router().directory().Find(common::SessionId("s"))->has_value());
}

TEST(TtlTest, ARestartedRouterKnowsHowLongSessionsLive) {
  Cluster cluster({.workers = 1});
  CreateWithTtl(cluster, "mortal", 60);
  CreateWithTtl(cluster, "over", 10);
  cluster.clock.Advance(absl::Seconds(59));
  cluster.RestartRouter();
  EXPECT_EQ(cluster.router().directory().counts().sessions, 1u);
  cluster.clock.Advance(absl::Seconds(1));
  AwaitPins(cluster, 0);
}

TEST(TooManySessionsTest, ThoseWithoutAPinAreFoundAgain) {
  Cluster cluster({.workers = 2, .config = [](RouterConfig& config) { config.max_sessions = 2; }});
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<int> homes;
  for (int i = 0; i < 8; ++i) {
    sessions.push_back(std::make_unique<Session>(cluster));
    homes.push_back(WorkerOf(sessions.back()->Says("hi")));
  }
  AwaitPins(cluster, 2);
  for (int i = 0; i < 8; ++i) sessions[i]->Says("more").Expect(Answers()).OnWorker(homes[i]);
  EXPECT_TRUE(
      absl::StrContains(cluster.Metrics(), "loopserve_directory_events_total{kind=\"expire\"} 0"));
}

TEST(MetricsTest, CountEveryRequestOnce) {
  Cluster cluster({.workers = 1});
  Session session(cluster);
  session.Says("hi").Expect(Answers());
  session.Says("more").Expect(Answers());
  Session(cluster, "unknown").Says("x").Expect(FailsWith(Reason::kSessionNotFound));
  const std::string text = cluster.Metrics();
  for (
      const char* line :
      {"loopserve_requests_total{code=\"OK\",method=\"Turn\",model=\"tiny\",stream=\"true\"} 2",
       "loopserve_requests_total{code=\"NOT_FOUND\",method=\"Turn\",model=\"tiny\",stream=\"true\"}"
       " 1",
       "loopserve_session_affinity_total{decision=\"initialize\",model=\"tiny\",source=\"host\"} 1",
       "loopserve_session_affinity_total{decision=\"retain\",model=\"tiny\",source=\"host\"} 1",
       "loopserve_request_inflight{model=\"tiny\"} 0", "loopserve_request_queued{model=\"tiny\"} 0",
       "loopserve_worker_up{worker=\"w1\"} 1", "loopserve_worker_inflight{worker=\"w1\"} 0",
       "loopserve_worker_sessions{worker=\"w1\"} 1", "loopserve_directory_sessions 1"}) {
    EXPECT_TRUE(absl::StrContains(text, line)) << line;
  }
}

}  // namespace
}  // namespace loopserve::testing
