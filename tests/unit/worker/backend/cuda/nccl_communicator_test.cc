#include "worker/backend/cuda/nccl_communicator.h"

#include <gmock/gmock.h>

#include <atomic>
#include <functional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/fake_nccl.h"
#include "worker/comm/rank_exchange.h"

namespace loopserve::worker::cuda {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

constexpr int kSize = 3;

// Values of either type in rows that lie further apart than they are wide.
class Values {
 public:
  Values(int64_t rows, int64_t cols, ActivationType type, int64_t gap = 3)
      : rows_(rows), cols_(cols), type_(type), bytes_(Bytes(rows, cols + gap), std::byte{0x55}) {
    stride_ = cols + gap;
  }
  TensorView view() {
    return {reinterpret_cast<float*>(bytes_.data()), rows_, cols_, stride_, type_};
  }
  float Get(int64_t r, int64_t c) {
    const void* const at = view().Cols(c, 1).row(r);
    return type_ == ActivationType::kF32 ? *static_cast<const float*>(at)
                                         : Bf16ToFloat(*static_cast<const uint16_t*>(at));
  }
  void Set(int64_t r, int64_t c, float value) {
    void* const at = view().Cols(c, 1).row(r);
    if (type_ == ActivationType::kF32) {
      *static_cast<float*>(at) = value;
    } else {
      *static_cast<uint16_t*>(at) = FloatToBf16(value);
    }
  }
  void Fill(const std::function<float(int64_t, int64_t)>& value) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) Set(r, c, value(r, c));
    }
  }
  // Also that the gaps are as they were.
  void Expect(const std::function<float(int64_t, int64_t)>& value) {
    const float untouched = Values(1, 1, type_).Get(0, 0);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < stride_; ++c) {
        EXPECT_EQ(Get(r, c), c < cols_ ? value(r, c) : untouched) << r << ", " << c;
      }
    }
  }

 private:
  size_t Bytes(int64_t rows, int64_t cols) const {
    return static_cast<size_t>(rows * cols) * BytesOf(type_);
  }
  const int64_t rows_, cols_;
  int64_t stride_ = 0;
  const ActivationType type_;
  std::vector<std::byte> bytes_;
};

class NcclCommunicatorTest : public ::testing::Test {
 protected:
  absl::Status Connect(absl::Duration timeout = absl::Minutes(1), int size = kSize) {
    absl::StatusOr<std::unique_ptr<PeerSums>> sums = absl::FailedPreconditionError("too far apart");
    if (sums_ != nullptr) sums = std::move(sums_);
    auto ranks = ConnectNcclRanks(nccl_, Devices(size), std::move(sums), timeout, nullptr);
    if (ranks.ok()) ranks_ = *std::move(ranks);
    return ranks.status();
  }
  std::vector<std::unique_ptr<NcclDevice>> Devices(int count) {
    std::vector<std::unique_ptr<NcclDevice>> devices;
    devices_.clear();
    for (int r = 0; r < count; ++r) {
      auto device = std::make_unique<FakeDevice>();
      devices_.push_back(device.get());
      devices.push_back(std::move(device));
    }
    return devices;
  }
  // Sums of up to 16 bytes bypass NCCL in the next group.
  FakePeerSums& BypassNccl() {
    auto sums = std::make_unique<FakePeerSums>(16, sum_aborts_);
    FakePeerSums& theirs = *sums;
    sums_ = std::move(sums);
    return theirs;
  }
  void OnRanks(const std::function<void(Communicator&)>& body) {
    std::vector<std::thread> threads;
    for (const auto& comm : ranks_) threads.emplace_back([&] { body(*comm); });
    for (std::thread& thread : threads) thread.join();
  }
  // Lets go of the communicators and says how often NCCL was asked to abort each.
  std::vector<int> AbortsInTheEnd() {
    ranks_.clear();
    std::vector<int> aborts;
    for (const auto& comm : world_.comms) aborts.push_back(comm->aborts);
    return aborts;
  }

  FakeWorld world_;
  const NcclFunctions nccl_ = FakeNccl();
  std::atomic<int> sum_aborts_ = 0;
  std::unique_ptr<PeerSums> sums_;
  std::vector<FakeDevice*> devices_;
  std::vector<std::unique_ptr<Communicator>> ranks_;
};

float Mark(int rank, int64_t row, int64_t col) {
  return static_cast<float>(16 * rank + 4 * row + col);  // exact in bf16, too
}

TEST_F(NcclCommunicatorTest, GathersColumnsOfAnyWidth) {
  for (const int size : {1, 3}) {
    ASSERT_OK(Connect(absl::Minutes(1), size));
    for (const auto type : {ActivationType::kF32, ActivationType::kBf16}) {
      for (const int64_t rows : {1, 4}) {
        for (const auto& widths : {std::vector<int64_t>{3, 3, 3}, {2, 0, 3}, {0, 0, 1}}) {
          int64_t total = 0;
          for (int r = 0; r < size; ++r) total += widths[static_cast<size_t>(r)];
          OnRanks([&](Communicator& comm) {
            Values local(rows, widths[static_cast<size_t>(comm.rank())], type);
            Values full(rows, total, type);
            local.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
            ASSERT_OK(comm.AllGatherCols(local.view(), full.view()));
            ASSERT_OK(comm.Wait());
            full.Expect([&](int64_t r, int64_t c) {
              int rank = 0;
              while (c >= widths[static_cast<size_t>(rank)]) {
                c -= widths[static_cast<size_t>(rank++)];
              }
              return Mark(rank, r, c);
            });
          });
        }
      }
    }
    ranks_.clear();
    world_.Reset();
  }
}

TEST_F(NcclCommunicatorTest, GathersIntoAPlaceThatHoldsTheLocalPart) {
  ASSERT_OK(Connect());
  for (const int64_t rows : {1, 3}) {
    OnRanks([&](Communicator& comm) {
      Values full(rows, 2 * kSize, ActivationType::kF32);
      full.Fill([](int64_t r, int64_t c) { return Mark(static_cast<int>(c / 2), r, c % 2); });
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < 2 * kSize; ++c) {
          if (c / 2 != comm.rank()) full.Set(r, c, -1);
        }
      }
      ASSERT_OK(comm.AllGatherCols(full.view().Cols(2 * comm.rank(), 2), full.view()));
      full.Expect([](int64_t r, int64_t c) { return Mark(static_cast<int>(c / 2), r, c % 2); });
    });
  }
}

TEST_F(NcclCommunicatorTest, SumsAndBroadcasts) {
  ASSERT_OK(Connect());
  for (const auto type : {ActivationType::kF32, ActivationType::kBf16}) {
    for (const int64_t gap : {0, 5}) {
      OnRanks([&](Communicator& comm) {
        Values x(2, 4, type, gap);
        x.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
        ASSERT_OK(comm.AllReduceSum(x.view()));
        x.Expect(
            [](int64_t r, int64_t c) { return Mark(0, r, c) + Mark(1, r, c) + Mark(2, r, c); });
        for (int root = 0; root < kSize; ++root) {
          x.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
          ASSERT_OK(comm.Broadcast(x.view(), root));
          x.Expect([&](int64_t r, int64_t c) { return Mark(root, r, c); });
        }
        ASSERT_OK(comm.Barrier());
        EXPECT_OK(comm.AllReduceSum({}));
        EXPECT_OK(comm.AllGatherCols({}, {}));
      });
    }
  }
  EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
}

TEST_F(NcclCommunicatorTest, TensorsThatDoNotFitAbortTheGroup) {
  const std::function<absl::Status(Communicator&)> calls[] = {
      [](Communicator& comm) {
        Values x(1, comm.rank() == 2 ? 3 : 2, ActivationType::kF32);
        return comm.AllReduceSum(x.view());
      },
      [](Communicator& comm) {
        Values x(1, 2, comm.rank() == 0 ? ActivationType::kF32 : ActivationType::kBf16);
        return comm.AllReduceSum(x.view());
      },
      [](Communicator& comm) {
        Values local(1, 2, ActivationType::kF32), full(1, 7, ActivationType::kF32);
        return comm.AllGatherCols(local.view(), full.view());
      },
      [](Communicator& comm) {
        // Widths that add up, one of them less than nothing.
        Values local(1, 4, ActivationType::kF32), full(1, 7, ActivationType::kF32);
        TensorView part = local.view();
        if (comm.rank() == 1) part.cols = -1;
        return comm.AllGatherCols(part, full.view());
      },
      [](Communicator& comm) {
        Values x(1, 2, ActivationType::kF32);
        return comm.Broadcast(x.view(), 3);
      },
      [](Communicator& comm) {
        Values x(1, 2, ActivationType::kF32);
        return comm.rank() == 1 ? comm.Barrier() : comm.AllReduceSum(x.view());
      }};
  for (const auto& call : calls) {
    world_.Reset();
    ASSERT_OK(Connect());
    OnRanks([&](Communicator& comm) {
      EXPECT_THAT(call(comm), StatusIs(absl::StatusCode::kInvalidArgument));
      EXPECT_THAT(comm.Wait(), StatusIs(absl::StatusCode::kInvalidArgument));
    });
    EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
  }
}

TEST_F(NcclCommunicatorTest, AnAbortFreesThoseWhoWaitAndTheFirstOneCounts) {
  ASSERT_OK(Connect());
  OnRanks([&](Communicator& comm) {
    if (comm.rank() == 1) comm.Abort(absl::InternalError("rank 1 broke"));
    for (int later = 0; later < 3; ++later) {
      EXPECT_EQ(comm.Barrier(), absl::InternalError("rank 1 broke"));
      EXPECT_EQ(comm.Wait(), absl::InternalError("rank 1 broke"));
    }
    comm.Abort(absl::CancelledError("too late"));
  });
  EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
  EXPECT_EQ(world_.used_after_abort, 0);
}

// A peer that hangs in NCCL: the abort of its communicator is what frees the call.
class HangingNcclTest : public NcclCommunicatorTest, public ::testing::WithParamInterface<bool> {};

TEST_P(HangingNcclTest, AnAbortEndsTheCall) {
  ASSERT_OK(Connect());
  world_.blocks = GetParam();
  {
    absl::MutexLock lock(&world_.mutex);
    for (int r = 0; r < kSize; ++r) world_.posted[static_cast<size_t>(r)].resize(2 - (r == 2));
    world_.done = 1;
  }
  const absl::Time start = absl::Now();
  std::thread breaker([&] {
    absl::SleepFor(absl::Milliseconds(50));
    const absl::Time asked = absl::Now();
    ranks_[0]->Abort(absl::UnavailableError("given up"));
    EXPECT_LT(absl::Now() - asked, absl::Milliseconds(150)) << "an abort waits for nobody";
  });
  OnRanks([](Communicator& comm) {
    absl::Status status;
    while (status.ok()) status = comm.Barrier();
    EXPECT_EQ(status, absl::UnavailableError("given up"));
  });
  breaker.join();
  EXPECT_LT(absl::Now() - start, absl::Seconds(10)) << "long before the patience ends";
  EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
  EXPECT_EQ(world_.used_after_abort, 0);
}

INSTANTIATE_TEST_SUITE_P(Modes, HangingNcclTest, ::testing::Bool(), [](const auto& info) {
  return info.param ? "InACallThatBlocks" : "InProgress";
});

TEST_F(NcclCommunicatorTest, ACallThatNcclDoesNotGetDoneIsGivenUp) {
  ASSERT_OK(Connect(absl::Milliseconds(500)));  // in which every rank's thread has started
  world_.deaf = 1;
  OnRanks([](Communicator& comm) {
    const absl::Status status = comm.Barrier();
    if (comm.rank() == 1) return;
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kDeadlineExceeded,
                                 HasSubstr("ncclAllReduce was not done after 500ms")));
  });
  EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
}

TEST_F(NcclCommunicatorTest, ARankThatDoesNotComeIsMissedInBoundedTime) {
  ASSERT_OK(Connect(absl::Milliseconds(50)));
  OnRanks([](Communicator& comm) {
    if (comm.rank() == 2) return;
    EXPECT_THAT(comm.Barrier(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  });
}

TEST_F(NcclCommunicatorTest, ADeviceWithoutASignOfLifeIsMissedInBoundedTime) {
  ASSERT_OK(Connect(absl::Milliseconds(300)));
  OnRanks([&](Communicator& comm) {
    ASSERT_OK(comm.Barrier());
    FakeDevice& device = *devices_[static_cast<size_t>(comm.rank())];
    device.idle = false;
    ASSERT_OK(comm.rank() == 1 ? absl::OkStatus() : device.Mark());
    EXPECT_THAT(comm.Wait(), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 1")));
  });
}

TEST_F(NcclCommunicatorTest, ADeviceThatGoesOnIsWaitedFor) {
  ASSERT_OK(Connect(absl::Milliseconds(200)));
  devices_[0]->idle = false;
  std::thread device([&] {
    for (int i = 0; i < 20; ++i) {
      absl::SleepFor(absl::Milliseconds(25));
      EXPECT_OK(devices_[i % 2 == 0 ? 0 : 1]->Mark());
    }
    devices_[0]->idle = true;
  });
  EXPECT_OK(ranks_[0]->Wait());
  device.join();
}

TEST_F(NcclCommunicatorTest, TroubleOfADeviceOrOfNcclEndsTheStepForAll) {
  ASSERT_OK(Connect());
  devices_[1]->broken = true;
  OnRanks([&](Communicator& comm) {
    devices_[static_cast<size_t>(comm.rank())]->idle = false;
    EXPECT_THAT(comm.Wait(), StatusIs(absl::StatusCode::kInternal, HasSubstr("illegal address")));
  });
}

TEST_F(NcclCommunicatorTest, ErrorsThatNcclReportsLaterAreFound) {
  ASSERT_OK(Connect());
  world_.async_error = ncclRemoteError;
  OnRanks([&](Communicator& comm) {
    EXPECT_THAT(comm.Wait(), StatusIs(absl::StatusCode::kInternal, HasSubstr("a peer is gone")));
  });
}

TEST_F(NcclCommunicatorTest, ACallThatNcclRefusesAborts) {
  ASSERT_OK(Connect());
  world_.call_result = ncclInvalidUsage;
  OnRanks([&](Communicator& comm) {
    EXPECT_THAT(comm.Barrier(),
                StatusIs(absl::StatusCode::kInternal, HasSubstr("ncclAllReduce: something broke")));
  });
}

TEST_F(NcclCommunicatorTest, ARankThatCannotJoinIsTheGroupsError) {
  world_.init_result = ncclSystemError;
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kInternal, HasSubstr("ncclCommInitRank")));
  EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1})) << "of those who could";
}

// Ranks 0 and 1 of one process, rank 2 of another.
class NcclProcessesTest : public NcclCommunicatorTest {
 protected:
  absl::Status Connect(absl::Duration timeout = absl::Minutes(1)) {
    const auto listener = *FrameListener::Listen("127.0.0.1", 0);
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> here, there;
    std::thread other([&] {
      const auto exchange = *RankExchange::Follow("127.0.0.1", listener->port(), "token", {2, 1}, 3,
                                                  deadline, timeout);
      there = ConnectNcclRanks(nccl_, Devices(1), Apart(), timeout, exchange);
    });
    const RankRange others[] = {{2, 1}};
    here = ConnectNcclRanks(nccl_, Devices(2), Apart(), timeout,
                            *RankExchange::Lead(*listener, "token", {0, 2}, others, deadline,
                                                timeout, [] { return absl::OkStatus(); }));
    other.join();
    if (!here.ok()) return here.status();
    if (!there.ok()) return there.status();
    ranks_ = *std::move(here);
    ranks_.push_back(std::move(there->front()));
    return absl::OkStatus();
  }
  static absl::Status Apart() { return absl::UnavailableError("in several processes"); }
  static std::vector<std::unique_ptr<NcclDevice>> Devices(int count) {
    std::vector<std::unique_ptr<NcclDevice>> devices;
    for (int i = 0; i < count; ++i) devices.push_back(std::make_unique<FakeDevice>());
    return devices;
  }
};

TEST_F(NcclProcessesTest, ExchangeAsThoseOfOneProcessDo) {
  ASSERT_OK(Connect());
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(ranks_[static_cast<size_t>(rank)]->rank(), rank);
    EXPECT_EQ(ranks_[static_cast<size_t>(rank)]->size(), 3);
  }
  OnRanks([](Communicator& comm) {
    Values local(2, comm.rank() + 1, ActivationType::kBf16), full(2, 6, ActivationType::kBf16);
    local.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
    ASSERT_OK(comm.AllGatherCols(local.view(), full.view()));
    ASSERT_OK(comm.Wait());
    full.Expect([](int64_t r, int64_t c) {
      const int rank = c == 0 ? 0 : c < 3 ? 1 : 2;
      return Mark(rank, r, c - rank * (rank + 1) / 2);
    });
    Values x(1, 4, ActivationType::kF32);
    x.Fill([&](int64_t, int64_t c) { return static_cast<float>(comm.rank() + c); });
    ASSERT_OK(comm.AllReduceSum(x.view()));
    x.Expect([](int64_t, int64_t c) { return static_cast<float>(3 + 3 * c); });
    ASSERT_OK(comm.Broadcast(x.view(), 2));
    ASSERT_OK(comm.Barrier());
    ASSERT_OK(comm.Wait());
    ASSERT_OK_AND_ASSIGN(const int64_t least, comm.Least(7 - comm.rank()));
    EXPECT_EQ(least, 5);
  });
  EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
}

TEST_F(NcclProcessesTest, AnAbortReachesTheRanksOfTheOther) {
  for (const int who : {0, 2}) {
    world_.Reset();
    ASSERT_OK(Connect());
    OnRanks([&](Communicator& comm) {
      if (comm.rank() == who) comm.Abort(absl::InternalError("enough"));
      absl::Status status;
      while (status.ok()) status = comm.Barrier();
      EXPECT_EQ(status, absl::InternalError("enough"));
    });
    EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
  }
}

// However patient the exchange is with steps.
TEST_F(NcclProcessesTest, AProcessThatDoesNotJoinIsMissedInBoundedTime) {
  const auto listener = *FrameListener::Listen("127.0.0.1", 0);
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  std::shared_ptr<RankExchange> idle;
  std::thread other([&] {
    idle = *RankExchange::Follow("127.0.0.1", listener->port(), "token", {2, 1}, 3, deadline,
                                 absl::Minutes(10));
  });
  const RankRange others[] = {{2, 1}};
  EXPECT_THAT(
      ConnectNcclRanks(nccl_, Devices(2), Apart(), absl::Milliseconds(50),
                       *RankExchange::Lead(*listener, "token", {0, 2}, others, deadline,
                                           absl::Minutes(10), [] { return absl::OkStatus(); })),
      StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("waited 50ms")));
  other.join();
}

TEST_F(NcclProcessesTest, TensorsThatDoNotFitAreFound) {
  ASSERT_OK(Connect());
  OnRanks([](Communicator& comm) {
    Values x(1, comm.rank() == 2 ? 3 : 4, ActivationType::kF32);
    EXPECT_THAT(comm.AllReduceSum(x.view()), StatusIs(absl::StatusCode::kInvalidArgument));
  });
}

TEST_F(NcclProcessesTest, ARankThatIsMissedThereIsMissedHere) {
  ASSERT_OK(Connect(absl::Seconds(2)));  // which is also for meeting
  OnRanks([](Communicator& comm) {
    if (comm.rank() == 2) return;
    EXPECT_THAT(comm.Barrier(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  });
}

// --- Sums that bypass NCCL

TEST_F(NcclCommunicatorTest, SmallSumsAreAKernelOfEachRank) {
  FakePeerSums& sums = BypassNccl();
  ASSERT_OK(Connect());
  EXPECT_THAT(ranks_[0]->transport(), HasSubstr("sums of up to 16 B"));
  const auto posted = [&] {
    absl::MutexLock lock(&world_.mutex);
    return world_.posted[0].size();
  };
  const size_t before = posted();
  OnRanks([&](Communicator& comm) {
    for (const auto type : {ActivationType::kF32, ActivationType::kBf16}) {
      Values fits(2, type == ActivationType::kF32 ? 2 : 4, type, 0);
      ASSERT_OK(comm.AllReduceSum(fits.view()));
      ASSERT_OK(comm.Barrier());
    }
  });
  EXPECT_EQ(posted(), before + 2) << "the barriers alone";
  ASSERT_EQ(sums.sums.size(), 6u);
  std::set<std::pair<int, int64_t>> asked;
  for (const FakePeerSums::Asked& sum : sums.sums) asked.insert({sum.rank, sum.count});
  EXPECT_EQ(asked,
            (std::set<std::pair<int, int64_t>>{{0, 4}, {1, 4}, {2, 4}, {0, 8}, {1, 8}, {2, 8}}));
  OnRanks([&](Communicator& comm) {
    Values larger(1, 5, ActivationType::kF32, 0), with_gaps(2, 2, ActivationType::kF32, 1);
    larger.Fill([&](int64_t, int64_t) { return 1; });
    with_gaps.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
    ASSERT_OK(comm.AllReduceSum(larger.view()));
    larger.Expect([](int64_t, int64_t) { return 3; });
    ASSERT_OK(comm.AllReduceSum(with_gaps.view()));
    with_gaps.Expect([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
    EXPECT_OK(comm.AllReduceSum({}));
  });
  EXPECT_EQ(posted(), before + 3);
  EXPECT_EQ(sums.sums.size(), 9u) << "packed, as for NCCL";
}

TEST_F(NcclCommunicatorTest, AnAbortEndsThem) {
  BypassNccl();
  ASSERT_OK(Connect());
  ranks_[1]->Abort(absl::CancelledError("over"));
  EXPECT_GE(sum_aborts_, 1);
}

TEST_F(NcclCommunicatorTest, ASumThatCannotBeLaunchedAborts) {
  FakePeerSums& sums = BypassNccl();
  ASSERT_OK(Connect());
  sums.result = absl::InternalError("no launch");
  OnRanks([](Communicator& comm) {
    Values x(1, 2, ActivationType::kF32, 0);
    EXPECT_EQ(comm.AllReduceSum(x.view()), absl::InternalError("no launch"));
    EXPECT_EQ(comm.Barrier(), absl::InternalError("no launch"));
  });
}

TEST_F(NcclCommunicatorTest, SaysWhyThereAreNone) {
  ASSERT_OK(Connect());
  EXPECT_THAT(ranks_[0]->transport(), HasSubstr("NCCL alone: no kernels that sum, too far apart"));
}

// --- Agreeing, and recordings

TEST_F(NcclCommunicatorTest, RanksAgreeOnTheLeast) {
  ASSERT_OK(Connect());
  OnRanks([](Communicator& comm) {
    for (const int64_t base : {int64_t{-7}, int64_t{1} << 40}) {
      const absl::StatusOr<int64_t> least = comm.Least(base + (comm.rank() + 1) % 3);
      ASSERT_OK(least.status());
      EXPECT_EQ(*least, base);
    }
  });
}

// NCCL's abort waits for graphs that may start its kernels again.
TEST_F(NcclCommunicatorTest, CommunicatorsTakeTheRecordingsWithThem) {
  ASSERT_OK(Connect());
  world_.recordings = kSize;
  for (FakeDevice* const device : devices_) device->recordings = &world_.recordings;
  ranks_[0]->Abort(absl::CancelledError("over"));
  for (int r = 0; r < kSize; ++r) {
    EXPECT_EQ(world_.recordings, kSize - r);
    ranks_.erase(ranks_.begin());
  }
  EXPECT_EQ(world_.recordings, 0);
  EXPECT_EQ(AbortsInTheEnd(), (std::vector<int>{1, 1, 1}));
}

TEST(NcclRanks, EachNeedsAGpuOfItsOwn) {
  const NcclRank ranks[] = {{.device = 0}, {.device = 1}, {.device = 0}};
  EXPECT_THAT(ConnectNcclRanks(ranks, absl::Seconds(1), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ranks 0 and 2")));
  EXPECT_THAT(ConnectNcclRanks({}, absl::Seconds(1), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::worker::cuda
