// Every communicator keeps the promises of worker/comm/communicator.h, at every number of ranks.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/support/status_matchers.h"
#include "worker/comm/communicator.h"
#include "worker/comm/rank_exchange.h"

namespace loopserve::worker {
namespace {

using ::testing::Combine;
using testing::StatusIs;
using ::testing::Values;
using ::testing::ValuesIn;

constexpr float kUntouched = -12345.0f;
constexpr absl::Duration kForever = absl::Minutes(10);

struct CommunicatorKind {
  const char* name;
  std::vector<std::unique_ptr<Communicator>> (*create)(int size, absl::Duration timeout);
};

// Ranks of processes that hold up to `per_process` ranks each, joined over sockets.
template <int per_process>
std::vector<std::unique_ptr<Communicator>> CreateOverProcesses(int size, absl::Duration timeout) {
  const auto listener = *FrameListener::Listen("127.0.0.1", 0);
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  std::vector<RankRange> processes;
  for (int first = 0; first < size; first += per_process) {
    processes.push_back({first, std::min(per_process, size - first)});
  }
  std::vector<std::shared_ptr<RankExchange>> exchanges(processes.size());
  std::vector<std::thread> dialling;
  for (size_t i = 1; i < processes.size(); ++i) {
    dialling.emplace_back([&, i] {
      exchanges[i] = *RankExchange::Follow("127.0.0.1", listener->port(), "token", processes[i],
                                           size, deadline, timeout);
    });
  }
  exchanges[0] =
      *RankExchange::Lead(*listener, "token", processes[0], std::span(processes).subspan(1),
                          deadline, timeout, [] { return absl::OkStatus(); });
  for (std::thread& thread : dialling) thread.join();
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (const auto& exchange : exchanges) {
    for (auto& comm : CreateProcessCommunicators(exchange)) ranks.push_back(std::move(comm));
  }
  return ranks;
}

constexpr CommunicatorKind kKinds[] = {{"thread", &CreateThreadCommunicators},
                                       {"process", &CreateOverProcesses<1>},
                                       {"processOfTwo", &CreateOverProcesses<2>}};

// A matrix whose rows lie further apart than they are wide; what lies between them must stay.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t cols, int64_t gap = 3)
      : rows_(rows),
        cols_(cols),
        stride_(cols + gap),
        values_(static_cast<size_t>(rows * stride_), kUntouched) {}

  TensorView view() { return {values_.data(), rows_, cols_, stride_}; }
  float& at(int64_t r, int64_t c) { return values_[static_cast<size_t>(r * stride_ + c)]; }
  void Fill(const std::function<float(int64_t, int64_t)>& value) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) at(r, c) = value(r, c);
    }
  }
  void ExpectBits(const std::function<float(int64_t, int64_t)>& expected) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < stride_; ++c) {
        const float want = c < cols_ ? expected(r, c) : kUntouched;
        ASSERT_EQ(std::memcmp(&want, &at(r, c), sizeof(float)), 0)
            << "row " << r << ", column " << c << ": " << at(r, c) << " instead of " << want;
      }
    }
  }

 private:
  const int64_t rows_;
  const int64_t cols_;
  const int64_t stride_;
  std::vector<float> values_;
};

// A value that tells rank, place and round.
float Mark(int rank, int64_t row, int64_t col, int round = 0) {
  return static_cast<float>(rank + 1) + static_cast<float>(row) * 0.25f -
         static_cast<float>(col) * 7.0f + static_cast<float>(round) * 1000.0f;
}

class CommunicatorTest : public ::testing::TestWithParam<std::tuple<CommunicatorKind, int>> {
 protected:
  static int size() { return std::get<1>(GetParam()); }
  static std::vector<std::unique_ptr<Communicator>> Create(absl::Duration timeout = kForever) {
    return std::get<0>(GetParam()).create(size(), timeout);
  }
  using Body = std::function<void(Communicator&)>;
  // Runs `body` on one thread per rank.
  static void OnRanks(const std::vector<std::unique_ptr<Communicator>>& ranks, const Body& body) {
    std::vector<std::thread> threads;
    for (const auto& comm : ranks) threads.emplace_back([&body, &comm] { body(*comm); });
    for (std::thread& thread : threads) thread.join();
  }
  static void OnRanks(const Body& body) { OnRanks(Create(), body); }
};

// One of each call, each with tensors of its own that are gone when it returns.
absl::Status CallAny(Communicator& comm, int which, int64_t rows = 2, int64_t cols = 3) {
  Matrix x(rows, cols);
  x.Fill([](int64_t, int64_t) { return 1.0f; });
  Matrix full(rows, cols * comm.size());
  switch (which % 4) {
    case 0:
      return comm.AllGatherCols(x.view(), full.view());
    case 1:
      return comm.AllReduceSum(x.view());
    case 2:
      return comm.Broadcast(x.view(), comm.size() - 1);
    default:
      return comm.Barrier();
  }
}

TEST_P(CommunicatorTest, RanksKnowWhoTheyAre) {
  const auto ranks = Create();
  ASSERT_EQ(ranks.size(), static_cast<size_t>(size()));
  for (int r = 0; r < size(); ++r) {
    EXPECT_EQ(ranks[static_cast<size_t>(r)]->rank(), r);
    EXPECT_EQ(ranks[static_cast<size_t>(r)]->size(), size());
  }
}

TEST_P(CommunicatorTest, GathersEqualColumnsOnEveryRank) {
  for (const int64_t rows : {1, 3, 17}) {
    for (const int64_t cols : {1, 7, 64, 193}) {
      OnRanks([rows, cols](Communicator& comm) {
        Matrix local(rows, cols), full(rows, cols * comm.size());
        local.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
        ASSERT_OK(comm.AllGatherCols(local.view(), full.view()));
        full.ExpectBits(
            [cols](int64_t r, int64_t c) { return Mark(static_cast<int>(c / cols), r, c % cols); });
        local.ExpectBits([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
      });
    }
  }
}

TEST_P(CommunicatorTest, GathersUnevenAndEmptyColumns) {
  // Widths 1, 0, 3, 0, 5, ...
  const auto width = [](int rank) { return rank % 2 == 0 ? rank + 1 : 0; };
  OnRanks([&width](Communicator& comm) {
    std::vector<std::pair<int, int64_t>> owner;  // of each column, and its place there
    for (int r = 0; r < comm.size(); ++r) {
      for (int c = 0; c < width(r); ++c) owner.emplace_back(r, c);
    }
    Matrix local(5, width(comm.rank())), full(5, static_cast<int64_t>(owner.size()));
    local.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
    ASSERT_OK(comm.AllGatherCols(local.view(), full.view()));
    full.ExpectBits([&owner](int64_t r, int64_t c) {
      const auto& [rank, col] = owner[static_cast<size_t>(c)];
      return Mark(rank, r, col);
    });
  });
}

TEST_P(CommunicatorTest, GathersIntoAPlaceThatHoldsTheLocalPart) {
  OnRanks([](Communicator& comm) {
    Matrix full(3, 4 * comm.size());
    const TensorView local = full.view().Cols(4 * comm.rank(), 4);
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t c = 0; c < 4; ++c) local.row(r)[c] = Mark(comm.rank(), r, c);
    }
    ASSERT_OK(comm.AllGatherCols(local, full.view()));
    full.ExpectBits([](int64_t r, int64_t c) { return Mark(static_cast<int>(c / 4), r, c % 4); });
  });
}

// What rank r adds at a column: sums of these depend on their order, and on every bit.
float Part(int rank, int64_t col) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float parts[][5] = {{1e8f, -0.0f, 0.1f, kInf, 1e-40f},
                            {1.0f, -0.0f, 0.2f, -1.0f, 1e-40f},
                            {-1e8f, -0.0f, 0.3f, 2.0f, -3e-41f}};
  return parts[rank % 3][col % 5];
}

TEST_P(CommunicatorTest, SumsInRankOrder) {
  for (const int64_t cols : {1, 5, 16, 133}) {
    OnRanks([cols](Communicator& comm) {
      Matrix x(3, cols);
      x.Fill([&](int64_t r, int64_t c) { return Part(comm.rank(), r + c); });
      ASSERT_OK(comm.AllReduceSum(x.view()));
      x.ExpectBits([&comm](int64_t r, int64_t c) {
        volatile float sum = Part(0, r + c);  // one rounding after each addition
        for (int rank = 1; rank < comm.size(); ++rank) sum = sum + Part(rank, r + c);
        return sum;
      });
    });
  }
}

TEST_P(CommunicatorTest, BroadcastsFromEveryRoot) {
  OnRanks([](Communicator& comm) {
    for (int root = 0; root < comm.size(); ++root) {
      Matrix x(3, 11);
      x.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c, root); });
      ASSERT_OK(comm.Broadcast(x.view(), root));
      x.ExpectBits([root](int64_t r, int64_t c) { return Mark(root, r, c, root); });
    }
  });
}

TEST_P(CommunicatorTest, TensorsWithoutValuesAreFine) {
  OnRanks([](Communicator& comm) {
    EXPECT_OK(comm.AllGatherCols({}, {}));
    EXPECT_OK(comm.AllReduceSum({}));
    EXPECT_OK(comm.Broadcast({}, 0));
    Matrix empty(0, 4);
    EXPECT_OK(comm.AllReduceSum(empty.view()));
  });
}

TEST_P(CommunicatorTest, NobodyPassesABarrierBeforeAllHaveCome) {
  std::atomic<int> arrived = 0;
  OnRanks([&arrived](Communicator& comm) {
    for (int round = 1; round <= 200; ++round) {
      ++arrived;
      ASSERT_OK(comm.Barrier());
      ASSERT_GE(arrived.load(), round * comm.size());
      ASSERT_OK(comm.Barrier());
      ASSERT_LE(arrived.load(), (round + 1) * comm.size());
    }
  });
}

TEST_P(CommunicatorTest, ServesManyRoundsOfEveryKindAndSize) {
  OnRanks([](Communicator& comm) {
    std::minstd_rand random(7);  // the same on every rank
    for (int round = 0; round < 500; ++round) {
      const auto rows = static_cast<int64_t>(1 + random() % 4);
      const auto cols = static_cast<int64_t>(1 + random() % 40);
      const auto root = static_cast<int>(random() % static_cast<unsigned>(comm.size()));
      Matrix x(rows, cols), full(rows, cols * comm.size());
      x.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c, round); });
      ASSERT_OK(comm.AllGatherCols(x.view(), full.view()));
      full.ExpectBits([&](int64_t r, int64_t c) {
        return Mark(static_cast<int>(c / cols), r, c % cols, round);
      });
      ASSERT_OK(comm.Broadcast(x.view(), root));
      x.ExpectBits([&](int64_t r, int64_t c) { return Mark(root, r, c, round); });
      x.Fill([&](int64_t, int64_t) { return static_cast<float>(comm.rank() + round); });
      ASSERT_OK(comm.AllReduceSum(x.view()));
      const int n = comm.size();
      x.ExpectBits(
          [&](int64_t, int64_t) { return static_cast<float>(n * (n - 1) / 2 + n * round); });
    }
  });
}

TEST_P(CommunicatorTest, AnAbortEndsEveryPendingAndLaterCall) {
  if (size() == 1) return;  // one rank never waits
  for (int which = 0; which < 4; ++which) {
    const auto ranks = Create();
    OnRanks(ranks, [which](Communicator& comm) {
      if (comm.rank() == comm.size() - 1) {
        comm.Abort(absl::InternalError("the last rank broke"));
      } else {
        EXPECT_THAT(CallAny(comm, which), StatusIs(absl::StatusCode::kInternal));
      }
      for (int later = 0; later < 8; ++later) {
        EXPECT_EQ(CallAny(comm, later), absl::InternalError("the last rank broke"));
      }
    });
  }
}

TEST_P(CommunicatorTest, AnAbortMayComeFromAnyThreadAndTheFirstOneCounts) {
  const auto ranks = Create();
  std::thread([&ranks] { ranks[0]->Abort(absl::CancelledError("first")); }).join();
  // Where it has come: a later one does not wait for long for what is on its way still.
  EXPECT_EQ(ranks.back()->Barrier(), absl::CancelledError("first"));
  ranks.back()->Abort(absl::InternalError("second"));
  for (const auto& comm : ranks) EXPECT_EQ(comm->Barrier(), absl::CancelledError("first"));
}

// Whatever the others are doing at that moment, nobody hangs, and (under the sanitizers) nobody
// touches tensors of a call that has returned.
TEST_P(CommunicatorTest, AnAbortInTheMiddleOfAnExchangeLeavesNothingBehind) {
  std::minstd_rand random(11);
  for (int run = 0; run < 60; ++run) {
    const auto ranks = Create();
    std::atomic<int> rounds = 0;
    const int stop = static_cast<int>(random() % 30);
    absl::Notification over;
    std::thread breaker([&] {
      while (rounds < stop && !over.HasBeenNotified()) std::this_thread::yield();
      ranks[static_cast<size_t>(run % size())]->Abort(absl::InternalError("enough"));
    });
    OnRanks(ranks, [&rounds, run](Communicator& comm) {
      absl::Status status;
      for (int round = run; status.ok(); ++round) {
        status = CallAny(comm, round, 16, 100);
        ++rounds;
      }
      EXPECT_EQ(status, absl::InternalError("enough"));
    });
    over.Notify();
    breaker.join();
  }
}

TEST_P(CommunicatorTest, AMissingRankEndsTheWaitOfAllOthers) {
  if (size() == 1) return;  // one rank never waits
  for (int which = 0; which < 4; ++which) {
    const auto ranks = Create(absl::Milliseconds(20));
    OnRanks(ranks, [which](Communicator& comm) {
      if (comm.rank() == 0) return;  // never comes
      EXPECT_THAT(CallAny(comm, which), StatusIs(absl::StatusCode::kDeadlineExceeded));
    });
    EXPECT_THAT(ranks[0]->Barrier(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  }
}

TEST_P(CommunicatorTest, TensorsThatDoNotFitAbortTheGroup) {
  const auto expect = [](const std::function<absl::Status(Communicator&)>& call) {
    OnRanks([&call](Communicator& comm) {
      EXPECT_THAT(call(comm), StatusIs(absl::StatusCode::kInvalidArgument));
      EXPECT_THAT(comm.Barrier(), StatusIs(absl::StatusCode::kInvalidArgument));
    });
  };
  const auto last = [](Communicator& comm) { return comm.rank() == comm.size() - 1; };
  const auto gather = [](Communicator& comm, int64_t rows, int64_t full_rows, int64_t spare) {
    Matrix local(rows, 2), full(full_rows, 2 * comm.size() + spare);
    return comm.AllGatherCols(local.view(), full.view());
  };
  expect([&](Communicator& comm) { return gather(comm, 2, 2, 1); });
  expect([&](Communicator& comm) { return gather(comm, 2, 2, -1); });
  expect([&](Communicator& comm) { return gather(comm, 2, 3, 0); });
  expect([&](Communicator& comm) { return gather(comm, 2, 2, last(comm) ? 1 : 0); });
  const auto broadcast = [](Communicator& comm, int root) {
    Matrix x(2, 2);
    return comm.Broadcast(x.view(), root);
  };
  expect([&](Communicator& comm) { return broadcast(comm, -1); });
  expect([&](Communicator& comm) { return broadcast(comm, comm.size()); });
  if (size() == 1) return;
  expect([&](Communicator& comm) {
    Matrix x(2, last(comm) ? 3 : 2);
    return comm.AllReduceSum(x.view());
  });
  expect([&](Communicator& comm) {
    Matrix x(last(comm) ? 3 : 2, 2);
    return comm.Broadcast(x.view(), comm.size() - 1);
  });
}

INSTANTIATE_TEST_SUITE_P(All, CommunicatorTest, Combine(ValuesIn(kKinds), Values(1, 2, 3, 8)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) +
                                  std::to_string(std::get<1>(info.param)) + "Ranks";
                         });

}  // namespace
}  // namespace loopserve::worker
