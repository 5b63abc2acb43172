#include "worker/pod/pod_seat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/pod/fake_pod.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FakePod;
using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

class PodSeatTest : public ::testing::Test {
 protected:
  void BecomeReady(uint64_t join = 1) {
    pod::v1::Loaded loaded;
    loaded.set_max_blocks(7);
    loaded.set_weights_bytes(100);
    seat_.SetLoaded(loaded);
    seat_.SetReady(join);
  }
  FakePod pod_, other_;
  PodSeat seat_{{1, 2}, 64};
};

TEST_F(PodSeatTest, SaysWhatIsMissing) {
  EXPECT_THAT(seat_.ready(), StatusIs(absl::StatusCode::kUnavailable,
                                      HasSubstr("ranks 1 to 2: nobody has joined")));
  EXPECT_THAT(seat_.Execute({}), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_TRUE(seat_.Take(pod_.connection));
  EXPECT_THAT(seat_.ready(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("p1 is loading")));
  EXPECT_THAT(seat_.Admit(1), StatusIs(absl::StatusCode::kUnavailable));
  BecomeReady();
  EXPECT_OK(seat_.ready());
  EXPECT_EQ(seat_.max_blocks(), 7U);
  EXPECT_EQ(seat_.weights_bytes(), 100U);
}

TEST_F(PodSeatTest, IsForOneAtATime) {
  ASSERT_TRUE(seat_.Take(pod_.connection));
  EXPECT_FALSE(seat_.Take(other_.connection));
  pod_.connection->End(absl::UnavailableError("gone"));
  seat_.Leave(*pod_.connection);
  EXPECT_THAT(seat_.ready(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("has left: gone")));
  EXPECT_TRUE(seat_.Take(other_.connection));
  seat_.Leave(*pod_.connection);
  EXPECT_EQ(seat_.pod(), other_.connection) << "another sits here by now";
}

TEST_F(PodSeatTest, StepsGoToWhoWasAdmitted) {
  ASSERT_TRUE(seat_.Take(pod_.connection));
  BecomeReady();
  ASSERT_OK(seat_.Admit(1).status());
  pod_.connection->End(absl::UnavailableError("gone"));
  seat_.Leave(*pod_.connection);
  ASSERT_TRUE(seat_.Take(other_.connection));
  BecomeReady(/*join=*/2);
  EXPECT_THAT(seat_.Execute({}), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("gone")));
  EXPECT_THAT(seat_.Admit(1), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("just joined")));
  EXPECT_THAT(seat_.Execute({}), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("gone")))
      << "nothing reaches a pod whose joining nobody has noticed";
  ASSERT_OK(seat_.Admit(2).status());
  other_.connection->End(absl::UnavailableError("gone, too"));
  EXPECT_THAT(seat_.Execute({}), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("gone, too")));
}

}  // namespace
}  // namespace loopserve::worker
