// A flow between a front that remembers and fake workers; tests/scenario tells whole stories.
#include "router/turn_flow.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/scenario/fake_worker.h"
#include "tests/support/manual_clock.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Reason;
using common::WorkerId;
using testing::FakeStore;
using testing::FakeWorker;
using testing::ReasonIs;
using testing::TurnPlan;
using Event = chat::v1::TurnResponse;

constexpr absl::Duration kPatience = absl::Seconds(20);

class RememberingFront final : public Front<Event> {
 public:
  void AddHeaders(const Headers& headers) override {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, value] : headers) headers_[name] = value;
  }
  bool Push(Event event) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(ends_.empty()) << "pushed after the end";
    events_.push_back(std::move(event));
    return !full_;
  }
  void End(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    ends_.push_back(status);
  }
  void Kill() override {}

  void SetFull(bool full) {
    absl::MutexLock lock(&mutex_);
    full_ = full;
  }
  bool AwaitEvents(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [this, count] { return events_.size() >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience);
  }
  // How it ended; it must have ended once.
  absl::Status AwaitEnd() {
    absl::MutexLock lock(&mutex_);
    const auto ended = [this] { return !ends_.empty(); };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&ended), kPatience)) {
      return absl::DeadlineExceededError("it has not ended");
    }
    EXPECT_EQ(ends_.size(), 1u);
    return ends_.front();
  }
  bool ended() {
    absl::MutexLock lock(&mutex_);
    return !ends_.empty();
  }
  // "started w1|Hello|done|"
  std::string Story() {
    absl::MutexLock lock(&mutex_);
    std::string story;
    for (const Event& event : events_) {
      if (event.has_started()) absl::StrAppend(&story, "started ", event.started().worker_id());
      if (event.has_done()) absl::StrAppend(&story, "done");
      absl::StrAppend(&story, event.delta().text(), "|");
    }
    return story;
  }
  std::string header(const std::string& name) {
    absl::MutexLock lock(&mutex_);
    return headers_[name];
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::string> headers_ ABSL_GUARDED_BY(mutex_);
  std::vector<Event> events_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::Status> ends_ ABSL_GUARDED_BY(mutex_);
  bool full_ ABSL_GUARDED_BY(mutex_) = false;
};

class TurnFlowTest : public ::testing::Test {
 protected:
  TurnFlowTest() {
    testing::KeepQueueOfCallbacks();
    for (const WorkerAddress& address : addresses_) {
      EXPECT_TRUE(table_.AwaitHealth(address.id, WorkerHealth::kReady, kPatience));
    }
  }
  ~TurnFlowTest() override {
    for (FakeWorker* worker : {&one_, &two_}) worker->Kill();
    core_.flows.AwaitNone();
  }

  // One call of a client, begun when it is made.
  struct Call {
    Call(TurnFlowTest& test, const std::string& session) {
      chat::v1::TurnRequest request;
      request.set_session_id(session);
      request.add_messages()->set_content("hi");
      const grpc::Slice slice(request.SerializeAsString());
      flow = std::make_shared<Flow<TurnKind>>(test.core_, Method::kTurn, &context, &front);
      flow->Begin(grpc::ByteBuffer(&slice, 1), /*once=*/false);
    }
    ~Call() {
      front.AwaitEnd().IgnoreError();
      flow->OnFrontDone();
    }
    RememberingFront front;
    grpc::CallbackServerContext context;
    std::shared_ptr<Flow<TurnKind>> flow;
  };

  // Makes a session and returns the worker that holds it, and the other one.
  std::pair<FakeWorker*, FakeWorker*> MakeSession(const std::string& id) {
    {
      absl::MutexLock lock(&store_.mutex);
      store_.sessions[id] = {.epoch = 1};
    }
    Call call(*this, id);
    EXPECT_OK(call.front.AwaitEnd());
    const bool first = call.front.header("x-worker-id") == "w1";
    return first ? std::pair(&one_, &two_) : std::pair(&two_, &one_);
  }

  FakeStore store_;
  FakeWorker one_{"w1", &store_};
  FakeWorker two_{"w2", &store_};
  const std::vector<WorkerAddress> addresses_ = {
      {WorkerId("w1"), absl::StrCat("127.0.0.1:", one_.port())},
      {WorkerId("w2"), absl::StrCat("127.0.0.1:", two_.port())}};
  const testing::ManualClock clock_;
  const std::unique_ptr<common::Metrics> registry_ = common::Metrics::Create("router");
  RouterMetrics metrics_{*registry_, {WorkerId("w1"), WorkerId("w2")}};
  WorkerTable table_{addresses_};
  const std::unique_ptr<SessionDirectory> directory_ = *CreateDirectory("embedded");
  common::Logger& log_ = common::Logger::Null();
  Routing routing_{*directory_, table_, metrics_, log_, clock_, absl::ZeroDuration()};
  Admission admission_{{.max_inflight = 1}, clock_};
  BusySessions busy_;
  common::Gate gate_;
  const std::unique_ptr<WorkerPool> pool_ =
      WorkerPool::Create(addresses_, {.check_interval = absl::Milliseconds(5)}, table_, *directory_,
                         metrics_, log_, [] {});
  FlowCore core_{{.max_message_bytes = 1000},
                 {routing_, table_, *pool_, admission_, busy_, gate_, metrics_, log_}};
};

TEST_F(TurnFlowTest, TellsTheStoryInOrderAndGivesEverythingBack) {
  Call call(*this, "");
  EXPECT_OK(call.front.AwaitEnd());
  const std::string worker = call.front.header("x-worker-id");
  EXPECT_EQ(call.front.Story(), absl::StrCat("started ", worker, "|Hello|,| world|done|"));
  EXPECT_EQ(call.front.header("x-session-id").substr(0, 2), "s-");
  EXPECT_EQ(admission_.inflight(), 0);
  EXPECT_TRUE(busy_.All().empty());
}

TEST_F(TurnFlowTest, BeforeTheFirstTokenALostWorkerIsReplacedUnseen) {
  const auto [owner, other] = MakeSession("s");
  owner->Next(TurnPlan::Hangs());  // after it has said that the turn started
  Call call(*this, "s");
  ASSERT_TRUE(owner->AwaitTurns(2));
  EXPECT_EQ(call.front.Story(), "");
  owner->Kill();
  EXPECT_OK(call.front.AwaitEnd());
  EXPECT_EQ(call.front.Story(), absl::StrCat("started ", other->id(), "|Hello|,| world|done|"));
  EXPECT_EQ(call.front.header("x-worker-id"), other->id());
}

TEST_F(TurnFlowTest, AfterTheFirstTokenItIsWorkerLost) {
  const auto [owner, other] = MakeSession("s");
  owner->Next(TurnPlan::Hangs(1));
  Call call(*this, "s");
  ASSERT_TRUE(call.front.AwaitEvents(2));
  owner->Kill();
  EXPECT_THAT(call.front.AwaitEnd(), ReasonIs(Reason::kWorkerLost));
  EXPECT_EQ(call.front.Story(), absl::StrCat("started ", owner->id(), "|Hello|"));
  EXPECT_EQ(other->turns(), 0);
  EXPECT_TRUE(busy_.All().empty());
}

TEST_F(TurnFlowTest, WithNobodyElseItIsNoWorkerAndWhenToComeBack) {
  const auto [owner, other] = MakeSession("s");
  other->Kill();
  owner->Next(TurnPlan::Hangs());
  Call call(*this, "s");
  ASSERT_TRUE(owner->AwaitTurns(2));
  owner->Kill();
  const absl::Status status = call.front.AwaitEnd();
  EXPECT_THAT(status, ReasonIs(Reason::kNoWorker));
  EXPECT_TRUE(common::InfoOf(status).retry_after.has_value());
}

TEST_F(TurnFlowTest, AFullFrontStopsTheReadingUntilItHasRoom) {
  const auto [owner, other] = MakeSession("s");
  owner->Next({.tokens = {"1", "2", "3", "4", "5"}});
  chat::v1::TurnRequest request;
  RememberingFront front;
  front.SetFull(true);
  grpc::CallbackServerContext context;
  request.set_session_id("s");
  const grpc::Slice slice(request.SerializeAsString());
  const auto flow = std::make_shared<Flow<TurnKind>>(core_, Method::kTurn, &context, &front);
  flow->Begin(grpc::ByteBuffer(&slice, 1), false);
  ASSERT_TRUE(front.AwaitEvents(2));
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(front.Story(), absl::StrCat("started ", owner->id(), "|1|"));
  flow->OnDrained();  // room for one more only
  ASSERT_TRUE(front.AwaitEvents(3));
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(front.Story(), absl::StrCat("started ", owner->id(), "|1|2|"));
  front.SetFull(false);
  flow->OnDrained();
  EXPECT_OK(front.AwaitEnd());
  EXPECT_EQ(front.Story(), absl::StrCat("started ", owner->id(), "|1|2|3|4|5|done|"));
  flow->OnFrontDone();
}

TEST_F(TurnFlowTest, WhoLeavesTheQueueOrTheWorkerLeavesNothingBehind) {
  const auto [owner, other] = MakeSession("s");
  owner->Next(TurnPlan::Hangs(1));
  Call running(*this, "s");
  ASSERT_TRUE(running.front.AwaitEvents(2));
  Call queued(*this, "");
  EXPECT_EQ(queued.front.header("x-queue-position"), "1");
  EXPECT_EQ(admission_.queued(), 1);
  queued.flow->Cancel();
  EXPECT_THAT(queued.front.AwaitEnd(), ReasonIs(Reason::kCancelled));
  EXPECT_EQ(admission_.queued(), 0);
  EXPECT_FALSE(running.front.ended());
  running.flow->Cancel();
  EXPECT_TRUE(owner->AwaitCancelled(1));
  EXPECT_THAT(running.front.AwaitEnd(), ReasonIs(Reason::kCancelled));
  EXPECT_EQ(admission_.inflight(), 0);
  EXPECT_TRUE(busy_.All().empty());
}

TEST_F(TurnFlowTest, RefusesBeforeAnyWorkerIsAsked) {
  const auto [owner, other] = MakeSession("s");
  owner->Next(TurnPlan::Hangs(1));
  Call running(*this, "s");
  ASSERT_TRUE(running.front.AwaitEvents(2));
  const int asked = one_.turns() + two_.turns();
  EXPECT_THAT(Call(*this, "s").front.AwaitEnd(), ReasonIs(Reason::kSessionBusy));
  EXPECT_THAT(Call(*this, "a\tb").front.AwaitEnd(), ReasonIs(Reason::kInvalidField));
  EXPECT_THAT(Call(*this, std::string(2000, 'x')).front.AwaitEnd(),
              ReasonIs(Reason::kMessageTooLarge));
  EXPECT_FALSE(gate_.Close(absl::ZeroDuration()));  // one is inside
  EXPECT_THAT(Call(*this, "").front.AwaitEnd(), ReasonIs(Reason::kDraining));
  EXPECT_EQ(one_.turns() + two_.turns(), asked);
  running.flow->Cancel();
}

TEST(TurnFlowMetricsTest, ATurnCountsByWhereMostOfItsPromptCameFrom) {
  types::v1::Usage usage;
  EXPECT_EQ(static_cast<int>(MainSource(usage)), 0);
  usage.set_computed_tokens(5);
  usage.set_restored_remote_tokens(6);
  EXPECT_EQ(static_cast<int>(MainSource(usage)), 4);
  usage.set_restored_host_tokens(7);
  EXPECT_EQ(static_cast<int>(MainSource(usage)), 2);
}

TEST(TurnFlowMetricsTest, OnlyRefusalsCountAsRejected) {
  EXPECT_EQ(RejectionOf(Reason::kQueueFull), Rejection::kQueueFull);
  EXPECT_EQ(RejectionOf(Reason::kQueueTimeout), Rejection::kQueueFull);
  EXPECT_EQ(RejectionOf(Reason::kContextLengthExceeded), Rejection::kTooLong);
  EXPECT_EQ(RejectionOf(Reason::kNoWorker), Rejection::kNoWorker);
  EXPECT_EQ(RejectionOf(Reason::kWorkerLost), std::nullopt);
  EXPECT_EQ(RejectionOf(Reason::kNone), std::nullopt);
}

}  // namespace
}  // namespace loopserve::router
