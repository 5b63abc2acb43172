#include "worker/pod/pod_connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "tests/unit/worker/pod/fake_pod.h"
#include "worker/engine/rank_pods.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FakePod;
using ::loopserve::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Calls = absl::StatusOr<std::vector<uint64_t>>;

class PodConnectionTest : public ::testing::Test {
 protected:
  // Runs a step while the test plays the pod.
  Calls While(const std::function<void()>& play) {
    Calls result;
    std::thread step([&] { result = pod_.connection->Execute(StepPlan{.tokens = {1}}); });
    play();
    step.join();
    return result;
  }
  PodConnection& connection() { return *pod_.connection; }

  FakePod pod_;
};

TEST_F(PodConnectionTest, AStepEndsWithThePodsAnswer) {
  for (const uint64_t step : {1, 2}) {
    const Calls calls = While([&] {
      const pod::v1::JoinResponse sent = pod_.Take();
      EXPECT_EQ(sent.step().step(), step);
      EXPECT_EQ(sent.step().tokens_size(), 1);
      EXPECT_OK(pod_.Alive(step, {3, 4}));
      EXPECT_THAT(connection().calls(), ElementsAre(3, 4));
      EXPECT_OK(pod_.StepDone(step));
    });
    ASSERT_OK(calls.status());
    EXPECT_THAT(*calls, ElementsAre(5, 6));
    EXPECT_THAT(connection().calls(), ElementsAre(0, 0)) << "there is no step at hand";
  }
}

TEST_F(PodConnectionTest, AFailureThereIsTheStepsFailure) {
  const Calls calls = While([&] {
    pod_.Take();
    EXPECT_OK(pod_.StepDone(1, absl::InternalError("rank 2: boom")));
  });
  EXPECT_THAT(calls, StatusIs(absl::StatusCode::kInternal, HasSubstr("rank 2: boom")));
}

TEST_F(PodConnectionTest, AnAbortIsSentOnceAndOnlyWhileAStepRuns) {
  connection().Abort(absl::InternalError("nothing runs"));
  const Calls calls = While([&] {
    pod_.Take();
    connection().Abort(absl::InternalError("enough"));
    connection().Abort(absl::InternalError("again"));
    const pod::v1::JoinResponse sent = pod_.Take();
    EXPECT_EQ(sent.abort().step(), 1U);
    EXPECT_EQ(sent.abort().status().text(), "enough");
    EXPECT_OK(pod_.StepDone(1, absl::InternalError("enough")));
  });
  EXPECT_THAT(calls, StatusIs(absl::StatusCode::kInternal));
  connection().Send({});
  EXPECT_EQ(pod_.Take().message_case(), pod::v1::JoinResponse::MESSAGE_NOT_SET);
}

TEST_F(PodConnectionTest, TheEndEndsEverybodysWait) {
  absl::Status copied;
  const Calls calls = While([&] {
    pod_.Take();
    connection().Read(3, [&](const absl::Status& status, const std::string&) { copied = status; });
    connection().End(absl::UnavailableError("its stream has ended"));
  });
  EXPECT_THAT(calls, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("pod p1 has left")));
  EXPECT_THAT(copied, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("its stream has ended")));
  EXPECT_EQ(connection().Execute({}).status(), connection().ended());
  absl::Status late;
  connection().Copy(1, 2, [&](const absl::Status& status, const std::string&) { late = status; });
  EXPECT_EQ(late, connection().ended());
}

TEST_F(PodConnectionTest, CopiesAreAnsweredByTag) {
  std::vector<std::string> got(2);
  for (const uint32_t block : {0, 1}) {
    connection().Read(block, [&got, block](const absl::Status& status, const std::string& bytes) {
      ASSERT_OK(status);
      got[block] = bytes;
    });
  }
  const pod::v1::JoinResponse first = pod_.Take(), second = pod_.Take();
  EXPECT_OK(pod_.CopyDone(second.read_block().tag(), absl::OkStatus(), "second"));
  EXPECT_OK(pod_.CopyDone(first.read_block().tag(), absl::OkStatus(), "first"));
  EXPECT_THAT(got, ElementsAre("first", "second"));
}

TEST_F(PodConnectionTest, AnswersToNothingAreRefused) {
  EXPECT_THAT(pod_.StepDone(1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(pod_.CopyDone(1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(pod_.Alive(1, {1, 2, 3})) << "of no step at hand: a sign of life";
  EXPECT_OK(connection().On({}));
  const Calls calls = While([&] {
    pod_.Take();
    EXPECT_THAT(pod_.StepDone(2), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(pod_.StepDone(1, absl::OkStatus(), {1, 2, 3}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("3 ranks instead of 2")));
    EXPECT_THAT(pod_.Alive(1, {1}), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_OK(pod_.StepDone(1));
  });
  EXPECT_OK(calls.status());
}

// Time as the leader's watch tells it, several times a second.
class Watching {
 public:
  explicit Watching(PodConnection& connection) : connection_(connection) {}
  void For(absl::Duration time) {
    for (const absl::Time end = now_ + time; now_ < end;) {
      now_ += absl::Milliseconds(100);
      connection_.Watch(now_);
    }
  }
  // As after a pause of the whole process.
  void Jump(absl::Duration time) {
    now_ += time;
    connection_.Watch(now_);
  }

 private:
  PodConnection& connection_;
  absl::Time now_ = absl::Now();
};

TEST_F(PodConnectionTest, APodThatIsSilentIsDropped) {
  Watching watch(connection());
  for (int i = 0; i < 4; ++i) {
    watch.For(absl::Seconds(4));
    EXPECT_OK(pod_.Alive(0, {}));
  }
  watch.Jump(absl::Minutes(5));
  EXPECT_FALSE(pod_.ended());
  watch.For(absl::Seconds(6));
  EXPECT_TRUE(pod_.ended());
  EXPECT_THAT(connection().ended(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("silent")));
}

TEST_F(PodConnectionTest, APodThatDoesNotComeBackFromAnAbortIsDroppedSoon) {
  const Calls calls = While([&] {
    pod_.Take();
    Watching watch(connection());
    watch.For(absl::Seconds(1));
    EXPECT_FALSE(pod_.ended());
    connection().Abort(absl::DeadlineExceededError("it stalled"));
    watch.For(absl::Milliseconds(200));
  });
  EXPECT_TRUE(pod_.ended());
  EXPECT_THAT(calls, StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(PodConnectionTest, APodThatIsSlowToComeBackAndSaysSoIsNot) {
  const Calls calls = While([&] {
    pod_.Take();
    connection().Abort(absl::DeadlineExceededError("another rank stalled"));
    Watching watch(connection());
    for (int i = 0; i < 30; ++i) {
      watch.For(absl::Milliseconds(300));
      EXPECT_OK(pod_.Alive(1, {1, 1}));
    }
    EXPECT_FALSE(pod_.ended());
    EXPECT_OK(pod_.StepDone(1, absl::DeadlineExceededError("another rank stalled")));
  });
  EXPECT_THAT(calls, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(PodConnectionTest, APodThatLivesButNeverComesBackIsDropped) {
  const Calls calls = While([&] {
    pod_.Take();
    connection().Abort(absl::DeadlineExceededError("its device hangs"));
    Watching watch(connection());
    for (absl::Duration gone; gone < kComeBack; gone += absl::Milliseconds(300)) {
      EXPECT_OK(pod_.Alive(1, {1, 1}));
      EXPECT_FALSE(pod_.ended());
      watch.For(absl::Milliseconds(300));
    }
    watch.For(absl::Milliseconds(300));
  });
  EXPECT_TRUE(pod_.ended());
  EXPECT_THAT(calls, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("has not come back")));
}

// It is a healthy pod that answers what it was asked before it was dropped.
TEST_F(PodConnectionTest, AnAnswerThatComesTooLateIsNotHeldAgainstThePod) {
  connection().Read(1, [](const absl::Status&, const std::string&) {});
  const uint64_t tag = pod_.Take().read_block().tag();
  connection().Drop(absl::DeadlineExceededError("it has been silent"));
  EXPECT_THAT(pod_.CopyDone(tag), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("silent")));
}

}  // namespace
}  // namespace loopserve::worker
