#include "worker/engine/rank_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <utility>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/support/stub_communicator.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::StatusIs;

constexpr absl::Duration kPatience = absl::Seconds(2);

class RankWatchTest : public ::testing::Test {
 protected:
  RankWatchTest() { watch_.Begin(now_); }
  void Pass(absl::Duration time) { now_ += time; }
  void Arrive(std::vector<int> ranks) {
    for (const int rank : ranks) watch_.Arrive(rank, now_);
  }
  // Looks as often as the watch wants while `time` passes; who was silent at the end.
  std::vector<int> SilentAfter(absl::Duration time) {
    std::vector<int> silent;
    for (const absl::Time end = now_ + time; now_ < end;) {
      Pass(watch_.tick());
      silent = watch_.Silent(now_);
    }
    return silent;
  }

  absl::Time now_ = absl::UnixEpoch();
  RankWatch watch_{3, kPatience};
};

TEST_F(RankWatchTest, NobodyIsMissedUntilSomebodyHasCome) {
  EXPECT_THAT(SilentAfter(absl::Minutes(5)), IsEmpty());
}

TEST_F(RankWatchTest, WhoIsMissedForTooLongIsSilent) {
  Pass(absl::Milliseconds(10));
  Arrive({0, 2});
  EXPECT_THAT(SilentAfter(kPatience), IsEmpty());
  EXPECT_THAT(SilentAfter(absl::Milliseconds(200)), ElementsAre(1));
  Arrive({1});
  EXPECT_THAT(SilentAfter(absl::Milliseconds(100)), IsEmpty());
  Arrive({1});
  EXPECT_THAT(SilentAfter(kPatience + absl::Seconds(1)), ElementsAre(0, 2));
}

// Another process tells of its ranks now and then, of several calls at once.
TEST_F(RankWatchTest, WhatIsHeardOfARankCountsAsItsCalls) {
  for (int call = 0; call < 5; ++call) Arrive({0, 1});
  EXPECT_THAT(watch_.calls(), ElementsAre(5, 5, 0));
  watch_.Reached(2, 4, now_);
  EXPECT_THAT(SilentAfter(kPatience + absl::Milliseconds(200)), ElementsAre(2));
  watch_.Reached(2, 5, now_);
  EXPECT_THAT(SilentAfter(absl::Milliseconds(100)), IsEmpty());
  watch_.Reached(2, 3, now_);  // heard late: no news
  EXPECT_THAT(watch_.calls(), ElementsAre(5, 5, 5));
  watch_.Reached(2, 6, now_);
  EXPECT_THAT(SilentAfter(kPatience + absl::Milliseconds(200)), ElementsAre(0, 1));
}

// However long a step has gone on, with however many calls between two of another's words.
TEST_F(RankWatchTest, WhoIsHeardOfLateIsMissedAsSoonAsTheOthers) {
  for (int look = 1; look <= 40; ++look) {
    for (int call = 0; call < 7; ++call) Arrive({0, 1});
    if (look % 2 == 0) watch_.Reached(2, 7 * look - 3, now_);  // it lags behind by some
    EXPECT_THAT(SilentAfter(watch_.tick()), IsEmpty());
  }
  EXPECT_THAT(SilentAfter(kPatience + 2 * watch_.tick()), ElementsAre(2));
}

TEST_F(RankWatchTest, WhatTookTheFirstOneLongMayTakeTheOthersLonger) {
  Pass(absl::Seconds(30));
  Arrive({0});
  EXPECT_THAT(SilentAfter(absl::Seconds(119)), IsEmpty());
  EXPECT_THAT(SilentAfter(absl::Seconds(2)), ElementsAre(1, 2));
}

TEST_F(RankWatchTest, TheMeasureIsTheStretchSinceAllWereTogether) {
  Pass(absl::Seconds(30));
  Arrive({0});
  Pass(absl::Seconds(60));
  Arrive({1, 2});
  Pass(absl::Milliseconds(1));
  Arrive({1});
  EXPECT_THAT(SilentAfter(kPatience + absl::Milliseconds(200)), ElementsAre(0, 2));
}

TEST_F(RankWatchTest, WhileTheProcessStoodStillNobodyWasMissed) {
  Arrive({0});
  watch_.Silent(now_);
  Pass(absl::Hours(1));
  EXPECT_THAT(watch_.Silent(now_), IsEmpty());
  EXPECT_THAT(SilentAfter(kPatience), ElementsAre(1, 2));
  Pass(absl::Hours(-2));  // a clock that was set back
  EXPECT_THAT(watch_.Silent(now_), ElementsAre(1, 2));
}

TEST_F(RankWatchTest, AStepBeginsAfresh) {
  Arrive({0});
  EXPECT_THAT(SilentAfter(absl::Minutes(1)), ElementsAre(1, 2));
  watch_.Begin(now_);
  EXPECT_THAT(SilentAfter(absl::Minutes(1)), IsEmpty());
}

TEST_F(RankWatchTest, ALoneRankIsNeverSilent) {
  RankWatch watch(1, kPatience);
  watch.Begin(now_);
  watch.Arrive(0, now_);
  EXPECT_THAT(watch.Silent(now_ + absl::Hours(1)), IsEmpty());
}

TEST_F(RankWatchTest, EveryCallOfACommunicatorTells) {
  class Sole final
      : public testing::StubCommunicator {  // rank 4 of 5, which is rank 0 of the watch
   public:
    Sole() : StubCommunicator(4, 5) {}
    absl::Status Barrier() override { return why_; }
    absl::StatusOr<int64_t> Least(int64_t value) override { return value; }
    void Abort(absl::Status why) override { why_ = std::move(why); }

   private:
    absl::Status why_;
  };
  auto comm = Watched(std::make_unique<Sole>(), watch_, 0);
  float value = 3;
  const TensorView x{&value, 1, 1, 1};
  const std::function<absl::Status()> calls[] = {
      [&] { return comm->AllGatherCols(x, x); }, [&] { return comm->AllReduceSum(x); },
      [&] { return comm->Broadcast(x, 0); },     [&] { return comm->Barrier(); },
      [&] { return comm->Least(3).status(); },   [&] { return comm->Wait(); }};
  for (const auto& call : calls) {
    watch_.Begin();
    EXPECT_OK(call());
    now_ = absl::Now();
    EXPECT_THAT(SilentAfter(absl::Minutes(1)), ElementsAre(1, 2));
  }
  comm->Abort(absl::CancelledError("over"));
  EXPECT_THAT(comm->Barrier(), StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace loopserve::worker
