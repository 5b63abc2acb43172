// What a process may say that is not so; what communicators promise is tests/conformance.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/status_matchers.h"
#include "worker/comm/communicator.h"
#include "worker/comm/rank_exchange.h"

namespace loopserve::worker {
namespace {

using testing::StatusIs;

// How a rank's part of a call begins on its way.
struct Offer {
  int32_t call = 0;  // a gather
  int32_t root = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t full_rows = 0;
  int64_t full_cols = 0;
};

// What a gather of `local` into `full` makes of the offers of ranks 1, 2, ...
absl::Status Gather(TensorView local, TensorView full, const std::vector<Offer>& offers) {
  const auto listener = *FrameListener::Listen("127.0.0.1", 0);
  const int others = static_cast<int>(offers.size());
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  std::shared_ptr<RankExchange> liar;
  std::thread dial([&] {
    liar = *RankExchange::Follow("127.0.0.1", listener->port(), "token", {1, others}, others + 1,
                                 deadline, absl::Minutes(1));
  });
  const RankRange ranks[] = {{1, others}};
  const auto leader = *RankExchange::Lead(*listener, "token", {0, 1}, ranks, deadline,
                                          absl::Minutes(1), [] { return absl::OkStatus(); });
  dial.join();
  std::vector<std::thread> lies;
  for (int r = 0; r < others; ++r) {
    lies.emplace_back([&, r] {
      const auto bytes = std::as_bytes(std::span(offers).subspan(static_cast<size_t>(r), 1));
      liar->Meet(r + 1, bytes).status().IgnoreError();
    });
  }
  const absl::Status status = CreateProcessCommunicators(leader)[0]->AllGatherCols(local, full);
  for (std::thread& lie : lies) lie.join();
  return status;
}

TEST(ProcessCommunicator, NobodyIsWiderThanTheWhole) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_OK(Gather({}, {}, {{}, {}, {}}));
  // Widths whose sum is 0, were there no end to numbers.
  EXPECT_THAT(Gather({}, {}, {{.cols = kMost}, {.cols = kMost}, {.cols = 2}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Gather({}, {}, {{.cols = 1}, {.cols = -1}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::worker
