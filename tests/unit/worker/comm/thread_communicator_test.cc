#include <functional>
#include <thread>

#include "tests/support/status_matchers.h"
#include "worker/comm/communicator.h"

namespace loopserve::worker {
namespace {

using testing::StatusIs;

// Runs `body` on one thread per rank.
void OnRanks(int size, absl::Duration timeout, const std::function<void(Communicator&)>& body) {
  const auto ranks = CreateThreadCommunicators(size, timeout);
  ASSERT_EQ(ranks.size(), static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (const auto& comm : ranks) threads.emplace_back([&] { body(*comm); });
  for (std::thread& thread : threads) thread.join();
}

TensorView View(std::vector<float>& values, int64_t rows) {
  const int64_t cols = static_cast<int64_t>(values.size()) / rows;
  return {values.data(), rows, cols, cols};
}

TEST(ThreadCommunicator, GathersUnevenColumns) {
  for (const int size : {1, 2, 3, 5}) {
    OnRanks(size, absl::Minutes(1), [size](Communicator& comm) {
      const int total = size * (size + 1) / 2;
      for (int round = 0; round < 50; ++round) {
        std::vector<float> local(static_cast<size_t>(2 * (comm.rank() + 1)),
                                 static_cast<float>(comm.rank() + round));
        std::vector<float> full(static_cast<size_t>(2 * total), -1);
        ASSERT_OK(comm.AllGatherCols(View(local, 2), View(full, 2)));
        size_t at = 0;
        for (int row = 0; row < 2; ++row) {
          for (int r = 0; r < size; ++r) {
            for (int i = 0; i <= r; ++i) EXPECT_EQ(full[at++], static_cast<float>(r + round));
          }
        }
      }
    });
  }
}

TEST(ThreadCommunicator, SumsInRankOrderWithEqualBitsOnAllRanks) {
  std::vector<float> seen(3);
  OnRanks(3, absl::Minutes(1), [&](Communicator& comm) {
    const float parts[] = {1e8f, 1.0f, -1e8f};
    std::vector<float> x = {parts[comm.rank()]};
    ASSERT_OK(comm.AllReduceSum(View(x, 1)));
    seen[static_cast<size_t>(comm.rank())] = x[0];
  });
  const float expected = (1e8f + 1.0f) + -1e8f;
  EXPECT_EQ(seen, (std::vector<float>{expected, expected, expected}));
}

TEST(ThreadCommunicator, BroadcastsFromTheRoot) {
  OnRanks(3, absl::Minutes(1), [](Communicator& comm) {
    std::vector<float> x = {static_cast<float>(comm.rank())};
    ASSERT_OK(comm.Broadcast(View(x, 1), 2));
    EXPECT_EQ(x[0], 2);
    ASSERT_OK(comm.Barrier());
  });
}

TEST(ThreadCommunicator, AbortFreesThoseWhoWaitAndStays) {
  OnRanks(3, absl::Minutes(10), [](Communicator& comm) {
    if (comm.rank() == 1) {
      comm.Abort(absl::InternalError("rank 1 broke"));
    }
    EXPECT_THAT(comm.Barrier(), StatusIs(absl::StatusCode::kInternal));
    EXPECT_THAT(comm.Barrier(), StatusIs(absl::StatusCode::kInternal));
  });
}

TEST(ThreadCommunicator, AMissingRankEndsTheWaitOnAllRanks) {
  OnRanks(3, absl::Milliseconds(20), [](Communicator& comm) {
    if (comm.rank() == 2) return;  // never arrives
    EXPECT_THAT(comm.Barrier(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  });
}

TEST(ThreadCommunicator, ShapesThatDoNotFitAbort) {
  OnRanks(2, absl::Minutes(10), [](Communicator& comm) {
    std::vector<float> local(comm.rank() == 0 ? 2 : 3);
    std::vector<float> full(4);
    EXPECT_THAT(comm.AllGatherCols(View(local, 1), View(full, 1)),
                StatusIs(absl::StatusCode::kInvalidArgument));
  });
}

}  // namespace
}  // namespace loopserve::worker
