#include "clients/cli/client.h"

#include <gmock/gmock.h>

#include <thread>

#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/fake_router.h"

namespace loopserve::clients {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ClientTest : public ::testing::Test {
 protected:
  FakeRouter router_;
  Client client_{Target{router_.address(), router_.address()}};
};

TEST_F(ClientTest, ATurnStreamsAndIsTimed) {
  std::vector<std::string> pieces;
  ASSERT_OK_AND_ASSIGN(const TurnOutcome outcome, client_.Turn({}, [&](absl::string_view text) {
    pieces.emplace_back(text);
  }));
  EXPECT_THAT(pieces, ElementsAre("All ", "right."));
  EXPECT_EQ(outcome.text, "All right.");
  EXPECT_EQ(outcome.started.worker_id(), "w1");
  EXPECT_EQ(outcome.done.usage().prompt_tokens(), 100u);
  EXPECT_GT(outcome.ttft_ms, 0);
  EXPECT_GE(outcome.total_ms, outcome.ttft_ms);
  EXPECT_EQ(outcome.gaps_ms.size(), 1u);
}

TEST_F(ClientTest, ObeysRetryInfoUnderOneTurnId) {
  common::ErrorInfo busy{common::Reason::kSessionBusy};
  busy.retry_after = absl::Milliseconds(1);
  router_.FailNextTurns({common::MakeError(busy, "busy"), common::MakeError(busy, "busy")});
  ASSERT_OK(client_.Turn({}).status());
  const auto requests = router_.requests();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_FALSE(requests[0].turn_id().empty());
  EXPECT_EQ(requests[0].turn_id(), requests[2].turn_id());
}

TEST_F(ClientTest, DoesNotRetryWithoutRetryInfo) {
  router_.FailNextTurns({common::MakeError(common::Reason::kContextLengthExceeded, "too long")});
  EXPECT_THAT(client_.Turn({}), StatusIs(absl::StatusCode::kInvalidArgument, "too long"));
  EXPECT_EQ(router_.requests().size(), 1u);
}

TEST_F(ClientTest, GivesUpAfterSomeRetries) {
  common::ErrorInfo full{common::Reason::kQueueFull};
  full.retry_after = absl::Milliseconds(1);
  router_.FailNextTurns(std::vector<absl::Status>(10, common::MakeError(full, "full")));
  EXPECT_THAT(client_.Turn({}), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(router_.requests().size(), 5u);
}

TEST_F(ClientTest, ATurnCanBeCancelledFromAnotherThread) {
  router_.HangTurns();
  TurnControl control;
  const auto outcome = client_.Turn(
      {}, [&](absl::string_view) { std::thread([&] { control.Cancel(); }).join(); }, &control);
  EXPECT_THAT(outcome, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(control.cancelled());
}

TEST_F(ClientTest, ACancelBeforeTheTurnCounts) {
  router_.HangTurns();
  TurnControl control;
  control.Cancel();
  EXPECT_THAT(client_.Turn({}, nullptr, &control), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(ClientTest, ListsEveryPageOfSessions) {
  for (const char* id : {"a", "b", "c"}) router_.AddSession(id);
  ASSERT_OK_AND_ASSIGN(const auto sessions, client_.ListSessions());
  ASSERT_EQ(sessions.size(), 3u);
  EXPECT_EQ(sessions[2].id(), "c");
}

TEST_F(ClientTest, SessionCallsCarryTheirReasons) {
  EXPECT_TRUE(
      common::HasReason(client_.GetSession("none").status(), common::Reason::kSessionNotFound));
  ASSERT_OK(client_.CreateSession("mine").status());
  ASSERT_OK(client_.GetSession("mine").status());
  ASSERT_OK(client_.ParkSession("mine").status());
  EXPECT_EQ(router_.parked(), "mine");
  ASSERT_OK(client_.DeleteSession("mine"));
  EXPECT_FALSE(router_.HasSession("mine"));
}

TEST_F(ClientTest, CountsTokensAndListsModels) {
  ASSERT_OK_AND_ASSIGN(const size_t tokens, client_.CountTokens("four"));
  EXPECT_EQ(tokens, 4u);
  ASSERT_OK_AND_ASSIGN(const auto models, client_.ListModels());
  EXPECT_EQ(models[0].id(), "tiny");
}

TEST_F(ClientTest, AwaitsTheWorkers) {
  EXPECT_THAT(client_.AwaitWorkers(2, absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("1 of 2 workers")));
  const std::atomic<bool> stop = true;
  EXPECT_THAT(client_.AwaitWorkers(2, absl::Minutes(1), &stop),
              StatusIs(absl::StatusCode::kCancelled));
  router_.SetReadyWorkers(2);
  ASSERT_OK(client_.AwaitWorkers(2, absl::ZeroDuration()));
}

TEST(ClientWithoutRouterTest, SaysTheAddressAndTheWayOut) {
  Client client(Target{"127.0.0.1:1", "127.0.0.1:1"});
  const absl::Status status = client.ClusterState().status();
  EXPECT_TRUE(IsUnreachable(status));
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("127.0.0.1:1")));
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("loopserve up")));
}

TEST(TurnIdTest, Differs) { EXPECT_NE(NewTurnId(), NewTurnId()); }

}  // namespace
}  // namespace loopserve::clients
