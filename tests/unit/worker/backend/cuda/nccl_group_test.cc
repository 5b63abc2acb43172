// Joining; what a group does then, nccl_communicator_test.cc sees.
#include "worker/backend/cuda/nccl_group.h"

#include <gmock/gmock.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/fake_nccl.h"

namespace loopserve::worker::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::StatusIs;

constexpr int kSize = 3;

class NcclJoinTest : public ::testing::Test {
 protected:
  static std::vector<std::unique_ptr<NcclDevice>> Devices(int count) {
    std::vector<std::unique_ptr<NcclDevice>> devices;
    for (int r = 0; r < count; ++r) devices.push_back(std::make_unique<FakeDevice>());
    return devices;
  }
  // This process has ranks [first, first + count) of the world.
  absl::Status Join(int first, int count, absl::Duration patience) {
    groups_.push_back(std::make_unique<NcclGroup>(
        nccl_, Devices(count), absl::UnimplementedError("none"), absl::Minutes(1), nullptr));
    return groups_.back()->Connect({.size = kSize, .first = first}, absl::Now() + patience);
  }
  // How often NCCL was asked to abort each communicator, once the groups are gone.
  std::vector<int> Aborts() {
    groups_.clear();
    std::vector<int> aborts;
    for (const auto& comm : world_.comms) aborts.push_back(comm->aborts);
    return aborts;
  }

  FakeWorld world_;
  const NcclFunctions nccl_ = FakeNccl();
  std::vector<std::unique_ptr<NcclGroup>> groups_;
};

TEST_F(NcclJoinTest, APeerThatDoesNotComeEndsItInBoundedTime) {
  const absl::Time start = absl::Now();
  EXPECT_THAT(Join(0, 2, absl::Milliseconds(50)),
              StatusIs(absl::StatusCode::kDeadlineExceeded,
                       AllOf(HasSubstr("joining the ranks"), HasSubstr("did not come"))));
  EXPECT_EQ(Aborts(), (std::vector<int>{1, 1}));
  EXPECT_LT(absl::Now() - start, absl::Seconds(2)) << "nobody is left waiting";
  EXPECT_EQ(world_.used_after_abort, 0);
}

TEST_F(NcclJoinTest, APeerMayComeLate) {
  absl::Status others;
  std::thread early([&] { others = Join(0, 2, absl::Minutes(1)); });
  while (true) {
    absl::MutexLock lock(&world_.mutex);
    if (world_.comms.size() == 2) break;
  }
  NcclGroup late(nccl_, Devices(1), absl::UnimplementedError("none"), absl::Minutes(1), nullptr);
  EXPECT_OK(late.Connect({.size = kSize, .first = 2}, absl::Now() + absl::Minutes(1)));
  early.join();
  EXPECT_OK(others);
}

TEST_F(NcclJoinTest, APeerThatBreaksWhileJoiningIsTold) {
  world_.join_result = ncclRemoteError;
  EXPECT_THAT(Join(0, 3, absl::Minutes(1)),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("a peer is gone")));
  EXPECT_EQ(Aborts(), (std::vector<int>{1, 1, 1}));
}

TEST_F(NcclJoinTest, APeerThatIsMissingAtTheFirstExchangeEndsItToo) {
  world_.deaf = 1;
  EXPECT_THAT(Join(0, 3, absl::Milliseconds(50)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("the first exchange")));
}

}  // namespace
}  // namespace loopserve::worker::cuda
