#include "worker/backend/cuda/peer_sums.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "worker/backend/cuda/kernels/one_shot_sum.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

class PeerSumsTest : public LaunchTest {
 protected:
  void SetUp() override {
    LaunchTest::SetUp();
    fake::SetDeviceCount(16);
    fake::SetPeers(fake::PeerLink::kNvlink);
    fake::Emulate("OneShotSumKernel", [this](void** arguments) {
      asked_.push_back(*static_cast<OneShotSum*>(arguments[0]));
    });
  }
  std::vector<NcclRank> Ranks(int count) const {
    std::vector<NcclRank> ranks;
    for (int r = 0; r < count; ++r) ranks.push_back({.device = r, .stream = stream_});
    return ranks;
  }

  std::vector<OneShotSum> asked_;
};

TEST_F(PeerSumsTest, EachRankSumsWhatAllOfThemHave) {
  ASSERT_OK_AND_ASSIGN(const auto sums, CreatePeerSums(Ranks(3)));
  EXPECT_EQ(fake::peers_enabled(), 6u) << "each reaches the two others";
  EXPECT_EQ(sums->most_bytes(), OneShotLimit(3));
  for (int r = 0; r < 3; ++r) {
    ASSERT_OK(sums->Sum(r, Memory(), 24, ActivationType::kBf16));
  }
  ASSERT_EQ(asked_.size(), 3u);
  for (int r = 0; r < 3; ++r) {
    const OneShotSum& sum = asked_[static_cast<size_t>(r)];
    EXPECT_EQ(sum.rank, r);
    EXPECT_EQ(sum.size, 3);
    EXPECT_EQ(sum.values, Memory());
    EXPECT_EQ(sum.count, 24);
    EXPECT_EQ(sum.type, ActivationType::kBf16);
    for (int peer = 0; peer < 3; ++peer) {
      std::byte* const memory = sum.memory[peer];
      EXPECT_EQ(memory, asked_[0].memory[peer]) << "the same on all ranks";
      EXPECT_NE(memory, sum.memory[(peer + 1) % 3]);
      ASSERT_TRUE(fake::IsDeviceMemory(memory, OneShotBytes()));
      EXPECT_EQ(std::count(memory, memory + OneShotBytes(), std::byte{0}),
                static_cast<ptrdiff_t>(OneShotBytes()));
    }
    EXPECT_TRUE(fake::IsPinnedMemory(const_cast<const uint32_t*>(sum.stop), sizeof(uint32_t)));
    EXPECT_EQ(*sum.stop, 0u);
  }
  sums->Abort();
  for (const OneShotSum& sum : asked_) EXPECT_EQ(*sum.stop, 1u);
}

TEST_F(PeerSumsTest, MayBeMadeAgain) {
  ASSERT_OK(CreatePeerSums(Ranks(2)).status());
  ASSERT_OK(CreatePeerSums(Ranks(2)).status()) << "the devices reach each other already";
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST_F(PeerSumsTest, RanksOfOneDeviceNeedNoLink) {
  fake::SetPeers(fake::PeerLink::kNone);
  const std::vector<NcclRank> ranks(2, {.device = 0, .stream = stream_});
  EXPECT_OK(CreatePeerSums(ranks).status());
}

TEST_F(PeerSumsTest, SaysWhyThereAreNone) {
  EXPECT_THAT(CreatePeerSums(Ranks(1)).status(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(CreatePeerSums(Ranks(9)).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("2 to 8 ranks, not 9")));
  fake::SetPeers(fake::PeerLink::kPcie);
  EXPECT_THAT(CreatePeerSums(Ranks(2)).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("GPU 0 does not reach GPU 1 over NVLink")));
  fake::SetPeers(fake::PeerLink::kNone);
  EXPECT_THAT(CreatePeerSums(Ranks(2)).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("does not reach GPU 1")));
  EXPECT_EQ(fake::peers_enabled(), 0u);
}

TEST_F(PeerSumsTest, ErrorsOfTheRuntimeAreTold) {
  fake::FailCall("cudaDeviceEnablePeerAccess", 1, cudaErrorLaunchFailure);
  EXPECT_THAT(CreatePeerSums(Ranks(2)).status(), StatusIs(absl::StatusCode::kInternal));
  fake::SetDeviceMemory(fake::alive().device_bytes + OneShotBytes());
  EXPECT_THAT(CreatePeerSums(Ranks(2)).status(), StatusIs(absl::StatusCode::kResourceExhausted))
      << "the second rank's";
  fake::SetDeviceMemory(size_t{1} << 30);
  ASSERT_OK_AND_ASSIGN(const auto sums, CreatePeerSums(Ranks(2)));
  fake::FailCall("cudaLaunchKernel", 1, cudaErrorLaunchFailure);
  EXPECT_THAT(sums->Sum(0, Memory(), 8, ActivationType::kF32),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("LaunchOneShotSum")));
}

}  // namespace
}  // namespace loopserve::worker::cuda
