#include "worker/comm/rank_exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "tests/support/patience.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

constexpr char kHost[] = "127.0.0.1";

absl::Time In(absl::Duration time) { return absl::Now() + time; }
RankExchange::Bytes Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }
std::string Text(RankExchange::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A leader with rank 0 and another process with ranks 1 and 2.
class RankExchangeTest : public ::testing::Test {
 protected:
  std::shared_ptr<RankExchange> Follow(absl::Duration timeout) const {
    return *RankExchange::Follow(kHost, listener_->port(), "token", {1, 2}, 3,
                                 In(absl::Seconds(20)), timeout);
  }
  void Connect(absl::Duration timeout = absl::Minutes(1)) {
    std::thread dial([&] { other_ = Follow(timeout); });
    leader_ = *Lead(In(absl::Seconds(20)), timeout);
    dial.join();
  }
  absl::StatusOr<std::shared_ptr<RankExchange>> Lead(absl::Time deadline,
                                                     absl::Duration timeout = absl::Minutes(1)) {
    const RankRange others[] = {{1, 2}};
    return RankExchange::Lead(*listener_, "token", {0, 1}, others, deadline, timeout,
                              [this] { return may_wait_; });
  }
  RankExchange& Of(int rank) { return rank == 0 ? *leader_ : *other_; }
  // What each rank gets when all bring something of the kind.
  void MeetAll(const std::function<std::string(int rank)>& brings) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 3; ++rank) {
      threads.emplace_back([&, rank] {
        ASSERT_OK_AND_ASSIGN(const auto seen, Of(rank).Meet(rank, Bytes(brings(rank))));
        ASSERT_EQ(seen.size(), 3U);
        for (int r = 0; r < 3; ++r) EXPECT_EQ(Text(seen[static_cast<size_t>(r)]), brings(r));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  const std::unique_ptr<FrameListener> listener_ = *FrameListener::Listen(kHost, 0);
  absl::Status may_wait_;
  std::shared_ptr<RankExchange> leader_, other_;
};

TEST_F(RankExchangeTest, EveryRankSeesWhatAllBring) {
  Connect();
  EXPECT_EQ(leader_->size(), 3);
  EXPECT_EQ(other_->here().first, 1);
  for (int round = 0; round < 50; ++round) {
    MeetAll([&](int rank) {
      return std::string(static_cast<size_t>((round * 7919 * (rank + 1)) % 5000),
                         static_cast<char>('a' + (rank + round) % 26));
    });
  }
}

TEST_F(RankExchangeTest, OneThreadMayMeetForAllRanksOfItsProcess) {
  Connect();
  std::thread other([&] {
    ASSERT_OK_AND_ASSIGN(const auto seen, other_->MeetForAll({}, absl::Minutes(1)));
    EXPECT_EQ(Text(seen[0]), "from the leader");
  });
  const std::string mine = "from the leader";
  ASSERT_OK_AND_ASSIGN(const auto seen, leader_->MeetForAll(Bytes(mine), absl::Minutes(1)));
  EXPECT_EQ(Text(seen[0]), mine);
  EXPECT_TRUE(seen[2].empty());
  other.join();
  MeetAll([](int rank) { return absl::StrCat(rank); });
}

TEST_F(RankExchangeTest, APodThatDoesNotComeIsNamed) {
  EXPECT_THAT(Lead(In(absl::Milliseconds(30))),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("ranks 1 to 2")));
}

TEST_F(RankExchangeTest, NobodyWaitsForAPodThatIsKnownToBeGone) {
  may_wait_ = absl::UnavailableError("it has left");
  EXPECT_EQ(Lead(In(absl::Minutes(5))).status(), may_wait_);
}

TEST_F(RankExchangeTest, StrangersAreSentAway) {
  // A wrong token, ranks that are nobody's, and no words at all: of more than may keep silent at
  // once, and for longer, one after the other, than pods have to connect.
  const auto wrong = RankExchange::Follow(kHost, listener_->port(), "guess", {1, 2}, 3,
                                          In(absl::Seconds(20)), absl::Minutes(1));
  const auto twice = RankExchange::Follow(kHost, listener_->port(), "token", {2, 1}, 3,
                                          In(absl::Seconds(20)), absl::Minutes(1));
  std::vector<std::unique_ptr<FrameSocket>> silent;
  for (int i = 0; i < 100; ++i) {
    silent.push_back(*FrameSocket::Dial(kHost, listener_->port(), In(absl::Seconds(20))));
  }
  Connect();
  MeetAll([](int rank) { return absl::StrCat(rank); });
  EXPECT_THAT((*wrong)->Meet(1, {}), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(RankExchangeTest, ALostProcessEndsTheRoundOfTheOthers) {
  Connect();
  std::thread waits(
      [&] { EXPECT_THAT(leader_->Meet(0, {}), StatusIs(absl::StatusCode::kCancelled)); });
  other_.reset();  // says so before it goes
  waits.join();
}

TEST_F(RankExchangeTest, TheLeadersReasonCounts) {
  Connect();
  leader_->Abort(absl::InternalError("first"));
  ASSERT_TRUE(testing::Becomes([this] { return !other_->status().ok(); }));
  EXPECT_EQ(other_->Break(absl::CancelledError("second")), absl::InternalError("first"));
  EXPECT_EQ(leader_->status(), absl::InternalError("first"));
}

TEST_F(RankExchangeTest, AnAbortReachesARankWhoseProcessIsNotAllThere) {
  Connect();
  std::thread waits(
      [&] { EXPECT_EQ(other_->Meet(1, {}).status(), absl::InternalError("enough")); });
  absl::SleepFor(absl::Milliseconds(20));
  leader_->Abort(absl::InternalError("enough"));
  waits.join();
}

TEST_F(RankExchangeTest, WaitingHasAnEnd) {
  Connect(absl::Milliseconds(30));
  EXPECT_THAT(other_->Meet(2, {}), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(leader_->Meet(0, {}), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(RankExchangeTest, JoiningMayHaveLessPatience) {
  Connect(absl::Minutes(10));
  EXPECT_THAT(leader_->MeetForAll({}, absl::Milliseconds(30)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("waited 30ms")));
  EXPECT_THAT(other_->MeetForAll({}, absl::Minutes(10)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

// A process that speaks the protocol and lies: the same round twice, a round of the future, a frame
// with another number of ranks.
TEST_F(RankExchangeTest, FramesThatCannotBeEndTheExchange) {
  for (const auto& [round, pieces, again] :
       {std::tuple{uint64_t{0}, 2, true}, {uint64_t{7}, 2, false}, {uint64_t{0}, 3, false}}) {
    std::unique_ptr<FrameSocket> liar;
    std::thread dial([&] {
      liar = *FrameSocket::Dial(kHost, listener_->port(), In(absl::Seconds(20)));
      const std::string token = "token";
      const int32_t ranks[] = {1, 2};
      const RankExchange::Bytes hello[] = {Bytes(token), std::as_bytes(std::span(ranks))};
      ASSERT_OK(liar->Send(FrameSocket::Kind::kHello, 0, hello));
    });
    leader_ = *Lead(In(absl::Seconds(20)));
    dial.join();
    const std::vector<RankExchange::Bytes> frame(static_cast<size_t>(pieces));
    ASSERT_OK(liar->Send(FrameSocket::Kind::kData, round, frame));
    if (again) liar->Send(FrameSocket::Kind::kData, round, frame).IgnoreError();
    absl::Status status;
    for (int i = 0; i < 3 && status.ok(); ++i) status = leader_->Meet(0, {}).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("ranks 1 to 2")));
  }
}

// --- Processes that do not read, and send what they have no right to send yet

class OverrunTest : public RankExchangeTest {
 protected:
  using Kind = FrameSocket::Kind;

  // A leader that is a socket, and followed by other_.
  std::unique_ptr<FrameSocket> Followed() {
    std::thread dial([&] { other_ = Follow(absl::Minutes(1)); });
    auto socket = listener_->Accept(In(absl::Seconds(20)));
    dial.join();
    return socket;
  }
  // A pod of one rank that is a socket.
  std::unique_ptr<FrameSocket> Pod(int32_t rank) {
    auto socket = *FrameSocket::Dial(kHost, listener_->port(), In(absl::Seconds(20)));
    const std::string token = "token";
    const int32_t ranks[] = {rank, 1};
    const RankExchange::Bytes hello[] = {Bytes(token), std::as_bytes(std::span(ranks))};
    EXPECT_OK(socket->Send(Kind::kHello, 0, hello));
    return socket;
  }
  static void Send(FrameSocket& socket, uint64_t round, const std::string& bytes) {
    const RankExchange::Bytes pieces[] = {Bytes(bytes)};
    socket.Send(Kind::kData, round, pieces).IgnoreError();
  }
  // A frame of two pieces; `overrun` is called when its header has come.
  static absl::StatusOr<std::vector<std::string>> Receive(
      FrameSocket& socket, const std::function<void()>& overrun = [] {}) {
    GrowingBytes first, second;
    GrowingBytes* const places[] = {&first, &second};
    const auto into =
        [&](const FrameSocket::Header&) -> absl::StatusOr<std::span<GrowingBytes* const>> {
      overrun();
      return places;
    };
    RETURN_IF_ERROR(socket.Receive(into, In(absl::Seconds(20))).status());
    return std::vector<std::string>{Text(first.view()), Text(second.view())};
  }
  // What a rank brings to a round: more than sockets hold.
  static std::string Much(int round) {
    return std::string(size_t{24} << 20, static_cast<char>('a' + round));
  }
  static void Bring(RankExchange& exchange, int rank) {
    for (int round = 0; round < 3; ++round) {
      if (!exchange.Meet(rank, Bytes(Much(round))).ok()) return;
    }
  }
};

TEST_F(OverrunTest, ALeaderCannotAnswerWhatHasNotLeft) {
  const auto liar = Followed();
  ASSERT_OK(Receive(*liar).status()) << "hello";
  std::thread first([&] { Bring(*other_, 1); }), second([&] { Bring(*other_, 2); });
  const auto arrived = Receive(*liar, [&] {
    for (uint64_t round = 0; round < 3; ++round) {
      Send(*liar, round, "an answer");
      absl::SleepFor(absl::Milliseconds(50));
    }
  });
  liar->Shutdown();
  first.join();
  second.join();
  ASSERT_OK(arrived.status());
  EXPECT_TRUE(*arrived == (std::vector<std::string>{Much(0), Much(0)})) << "bytes of two rounds";
}

TEST_F(OverrunTest, ALeaderCannotAnswerWhatWasNotBrought) {
  const auto liar = Followed();
  Send(*liar, 0, "an answer");
  EXPECT_THAT(other_->Meet(1, {}).status(),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("not of this round")));
}

TEST_F(OverrunTest, TheLeadersReasonIsWaitedForAndNotForGood) {
  const auto silent = Followed();
  const absl::Time start = absl::Now();
  EXPECT_EQ(other_->Break(absl::CancelledError("mine")), absl::CancelledError("mine"));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(200));
}

TEST_F(OverrunTest, PodsCannotRunAheadOfOneThatDoesNotRead) {
  const RankRange others[] = {{1, 1}, {2, 1}};
  const auto deaf = Pod(1), fast = Pod(2);
  leader_ = *RankExchange::Lead(*listener_, "token", {0, 1}, others, In(absl::Seconds(20)),
                                absl::Minutes(1), [] { return absl::OkStatus(); });
  std::thread first([&] { Bring(*leader_, 0); });
  Send(*deaf, 0, "");
  Send(*fast, 0, "fast");
  const auto arrived = Receive(*deaf, [&] {
    for (uint64_t round = 1; round < 4; ++round) {
      Send(*deaf, round, "");
      Send(*fast, round, "ahead");
      absl::SleepFor(absl::Milliseconds(50));
    }
  });
  // What runs ahead is an abort, which does not wait for the deaf for long.
  EXPECT_TRUE(!arrived.ok() || *arrived == (std::vector<std::string>{Much(0), "fast"}))
      << "bytes of two rounds";
  deaf->Shutdown();
  first.join();
}

}  // namespace
}  // namespace loopserve::worker
