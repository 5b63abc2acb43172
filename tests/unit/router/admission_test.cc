#include "router/admission.h"

#include <gtest/gtest.h>

#include "common/error.h"
#include "tests/support/manual_clock.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Reason;
using testing::ManualClock;
using testing::ReasonIs;

constexpr absl::Duration kPatient = absl::Hours(1);

void CallAll(std::vector<Admission::OnTurn> turns, const absl::Status& status = absl::OkStatus()) {
  for (Admission::OnTurn& turn : turns) turn(status);
}

class AdmissionTest : public ::testing::Test {
 protected:
  Admission::Arrival Arrive(int name, absl::Duration patience = kPatient) {
    auto arrival = admission_.Arrive(patience, [this, name](absl::Status s) {
      (s.ok() ? started_ : timed_out_).push_back(name);
    });
    EXPECT_OK(arrival);
    return arrival.value_or(Admission::Arrival{});
  }

  ManualClock clock_;
  Admission admission_{{.max_inflight = 2, .max_queue = 2, .max_queue_wait = absl::Seconds(10)},
                       clock_};
  std::vector<int> started_;
  std::vector<int> timed_out_;
};

TEST_F(AdmissionTest, StartsAtOnceWhileThereIsRoomThenTellsThePosition) {
  EXPECT_EQ(Arrive(1).position, 0);
  EXPECT_EQ(Arrive(2).position, 0);
  EXPECT_EQ(Arrive(3).position, 1);
  EXPECT_EQ(Arrive(4).position, 2);
  EXPECT_EQ(admission_.inflight(), 2);
  EXPECT_EQ(admission_.queued(), 2);
  EXPECT_TRUE(started_.empty());
}

TEST_F(AdmissionTest, RefusesWhenTheQueueIsFullAndSaysWhenToComeBack) {
  for (int i = 0; i < 4; ++i) Arrive(i);
  const auto refused = admission_.Arrive(kPatient, [](absl::Status) {});
  EXPECT_THAT(refused, ReasonIs(Reason::kQueueFull));
  const auto retry = common::InfoOf(refused.status()).retry_after;
  ASSERT_TRUE(retry.has_value());
  EXPECT_GE(*retry, absl::Milliseconds(100));
  EXPECT_LE(*retry, absl::Seconds(30));
}

TEST_F(AdmissionTest, StartsTheNextInOrderOfArrival) {
  const auto first = Arrive(1);
  const auto second = Arrive(2);
  Arrive(3);
  Arrive(4);
  CallAll(admission_.Leave(second.ticket));
  EXPECT_EQ(started_, std::vector<int>{3});
  CallAll(admission_.Leave(first.ticket));
  EXPECT_EQ(started_, (std::vector<int>{3, 4}));
  EXPECT_EQ(admission_.queued(), 0);
  EXPECT_EQ(admission_.inflight(), 2);
}

TEST_F(AdmissionTest, OneWhoGivesUpFreesAPlaceInTheQueue) {
  const auto first = Arrive(1);
  Arrive(2);
  const auto third = Arrive(3);
  Arrive(4);
  EXPECT_TRUE(admission_.Leave(third.ticket).empty());
  EXPECT_EQ(Arrive(5).position, 2);
  CallAll(admission_.Leave(first.ticket));
  EXPECT_EQ(started_, std::vector<int>{4});
  EXPECT_TRUE(admission_.Leave(third.ticket).empty());  // void by now
  EXPECT_EQ(admission_.inflight(), 2);
}

TEST_F(AdmissionTest, NobodyWaitsLongerThanAllowedOrThanHisDeadline) {
  const auto first = Arrive(1);
  Arrive(2);
  Arrive(3);
  Arrive(4, absl::Seconds(2));
  clock_.Advance(absl::Seconds(2));
  CallAll(admission_.Expire(), Admission::QueueTimeout());
  EXPECT_EQ(timed_out_, std::vector<int>{4});
  clock_.Advance(absl::Seconds(7));
  EXPECT_TRUE(admission_.Expire().empty());
  clock_.Advance(absl::Seconds(1));
  CallAll(admission_.Expire(), Admission::QueueTimeout());
  EXPECT_EQ(timed_out_, (std::vector<int>{4, 3}));
  EXPECT_TRUE(admission_.Leave(first.ticket).empty());
  EXPECT_TRUE(started_.empty());
  EXPECT_THAT(Admission::QueueTimeout(), ReasonIs(Reason::kQueueTimeout));
}

TEST_F(AdmissionTest, RetryDelayFollowsHowLongRequestsTake) {
  const auto delay = [this] {
    const auto refused = admission_.Arrive(kPatient, [](absl::Status) {});
    return common::InfoOf(refused.status()).retry_after.value_or(absl::ZeroDuration());
  };
  std::vector<Admission::Ticket> tickets;
  for (int i = 0; i < 4; ++i) tickets.push_back(Arrive(i).ticket);
  const absl::Duration before = delay();
  for (int i = 4; i < 20; ++i) {
    clock_.Advance(absl::Seconds(9));
    CallAll(admission_.Leave(tickets[i - 4]));
    tickets.push_back(Arrive(i).ticket);
  }
  EXPECT_GT(delay(), before);
}

TEST(BusySessionsTest, OneTurnAtATime) {
  BusySessions busy;
  const common::SessionId a("a");
  EXPECT_OK(busy.Enter(a));
  const absl::Status second = busy.Enter(a);
  EXPECT_THAT(second, ReasonIs(Reason::kSessionBusy));
  EXPECT_TRUE(common::InfoOf(second).retry_after.has_value());
  EXPECT_OK(busy.Enter(common::SessionId("b")));
  EXPECT_EQ(busy.All().size(), 2u);
  EXPECT_TRUE(busy.All().contains(a));
  busy.Leave(a);
  EXPECT_FALSE(busy.All().contains(a));
  EXPECT_OK(busy.Enter(a));
}

TEST(CheckIdTest, AcceptsUpTo256BytesWithoutControlCharacters) {
  EXPECT_OK(CheckId("session_id", ""));
  EXPECT_OK(CheckId("session_id", std::string(256, 'x')));
  EXPECT_OK(CheckId("session_id", "späti 日本 %/=+"));
  const absl::Status long_id = CheckId("session_id", std::string(257, 'x'));
  EXPECT_THAT(long_id, ReasonIs(Reason::kInvalidField));
  EXPECT_EQ(common::InfoOf(long_id).field, "session_id");
  for (const std::string bad : {"a\nb", "\r", "\x01", "\x7f", "a\xc2\x85", "\xc2\x9f"}) {
    EXPECT_THAT(CheckId("turn_id", bad), ReasonIs(Reason::kInvalidField));
  }
  EXPECT_THAT(CheckId("turn_id", std::string("a\0b", 3)), ReasonIs(Reason::kInvalidField));
}

TEST(IsUtf8Test, KnowsTheTable) {
  for (const char* good :
       {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "x\xe2\x82\xacy"}) {
    EXPECT_TRUE(IsUtf8(good)) << absl::string_view(good);
  }
  for (const char* bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xe2\x82",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xff", "ok\xfe"}) {
    EXPECT_FALSE(IsUtf8(bad)) << testing::GetStatus(absl::InvalidArgumentError(bad)).ToString();
  }
}

}  // namespace
}  // namespace loopserve::router
