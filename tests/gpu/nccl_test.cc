// One rank through the real NCCL on a real device: NCCL takes no two ranks on one GPU, so groups of
// several are tested with a fake (tests/unit/worker/backend/cuda/nccl_communicator_test.cc) and,
// where there are more GPUs, here.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include <functional>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/nccl_communicator.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {
namespace {

using testing::StatusIs;

constexpr int64_t kRows = 5;

int Devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// A matrix on one device, with a gap of two values behind each row.
class DeviceValues {
 public:
  DeviceValues(int64_t rows, int64_t cols, ActivationType type)
      : rows_(rows),
        cols_(cols),
        type_(type),
        region_(*DeviceRegion::Create(static_cast<size_t>(rows * (cols + 2)) * BytesOf(type))) {}
  TensorView view() {
    return {reinterpret_cast<float*>(region_.data()), rows_, cols_, cols_ + 2, type_};
  }
  void Fill(const std::function<float(int64_t, int64_t)>& value) {
    std::vector<std::byte> bytes(region_.size());
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_ + 2; ++c) Put(bytes.data(), r * (cols_ + 2) + c, value(r, c));
    }
    ASSERT_EQ(cudaMemcpy(region_.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  void Expect(const std::function<float(int64_t, int64_t)>& value) {
    std::vector<std::byte> bytes(region_.size());
    ASSERT_EQ(cudaMemcpy(bytes.data(), region_.data(), bytes.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) {
        ASSERT_EQ(Get(bytes.data(), r * (cols_ + 2) + c), value(r, c)) << r << ", " << c;
      }
    }
  }

 private:
  void Put(std::byte* values, int64_t at, float value) const {
    if (type_ == ActivationType::kF32) {
      reinterpret_cast<float*>(values)[at] = value;
    } else {
      reinterpret_cast<uint16_t*>(values)[at] = FloatToBf16(value);
    }
  }
  float Get(const std::byte* values, int64_t at) const {
    return type_ == ActivationType::kF32
               ? reinterpret_cast<const float*>(values)[at]
               : Bf16ToFloat(reinterpret_cast<const uint16_t*>(values)[at]);
  }
  const int64_t rows_, cols_;
  const ActivationType type_;
  DeviceRegion region_;
};

float Mark(int rank, int64_t row, int64_t col) {
  return static_cast<float>(32 * rank + 5 * row + col % 5);  // exact in bf16, too
}

class NcclTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (Devices() == 0) GTEST_SKIP() << "skipped: no CUDA device";
    if (Devices() < size()) GTEST_SKIP() << "skipped: only " << Devices() << " CUDA device(s)";
    std::vector<NcclRank> ranks;
    for (int r = 0; r < size(); ++r) {
      ASSERT_EQ(cudaSetDevice(r), cudaSuccess);
      streams_.push_back(*Stream::Create());
      ranks.push_back({.device = r, .stream = streams_.back().get()});
    }
    ASSERT_OK_AND_ASSIGN(ranks_, ConnectNcclRanks(ranks, absl::Seconds(20), nullptr));
  }
  static int size() { return GetParam(); }
  // Runs `body` on one thread per rank, with the rank's device current.
  void OnRanks(const std::function<void(Communicator&)>& body) {
    std::vector<std::thread> threads;
    for (const auto& comm : ranks_) {
      threads.emplace_back([&] {
        ASSERT_EQ(cudaSetDevice(comm->rank()), cudaSuccess);
        body(*comm);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  std::vector<Stream> streams_;  // outlive the communicators
  std::vector<std::unique_ptr<Communicator>> ranks_;
};

constexpr ActivationType kTypes[] = {ActivationType::kF32, ActivationType::kBf16};

TEST_P(NcclTest, GathersColumns) {
  for (const ActivationType type : kTypes) {
    for (const int64_t rows : {int64_t{1}, kRows}) {
      for (const int uneven : {0, 1}) {
        OnRanks([&](Communicator& comm) {
          const auto width = [&](int rank) { return 300 + uneven * rank; };
          int64_t total = 0;
          for (int r = 0; r < size(); ++r) total += width(r);
          DeviceValues local(rows, width(comm.rank()), type), full(rows, total, type);
          local.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
          full.Fill([](int64_t, int64_t) { return -1; });
          ASSERT_OK(comm.AllGatherCols(local.view(), full.view()));
          ASSERT_OK(comm.Wait());
          full.Expect([&](int64_t r, int64_t c) {
            int rank = 0;
            for (; c >= width(rank); ++rank) c -= width(rank);
            return Mark(rank, r, c);
          });
        });
      }
    }
  }
}

TEST_P(NcclTest, SumsAndBroadcasts) {
  for (const ActivationType type : kTypes) {
    OnRanks([&](Communicator& comm) {
      DeviceValues x(kRows, 300, type);
      x.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c) / 16; });
      ASSERT_OK(comm.AllReduceSum(x.view()));
      ASSERT_OK(comm.Wait());
      x.Expect([&](int64_t r, int64_t c) {
        float sum = 0;
        for (int rank = 0; rank < size(); ++rank) sum += Mark(rank, r, c) / 16;
        return sum;
      });
      const int root = size() - 1;
      x.Fill([&](int64_t r, int64_t c) { return Mark(comm.rank(), r, c); });
      ASSERT_OK(comm.Broadcast(x.view(), root));
      ASSERT_OK(comm.Wait());
      x.Expect([&](int64_t r, int64_t c) { return Mark(root, r, c); });
      for (int i = 0; i < 40; ++i) ASSERT_OK(comm.Barrier());
      ASSERT_OK(comm.Wait());
    });
  }
}

// A step's calls can be recorded and started again.
TEST_P(NcclTest, CallsLiveInAGraph) {
  OnRanks([&](Communicator& comm) {
    const cudaStream_t stream = streams_[static_cast<size_t>(comm.rank())].get();
    DeviceValues x(1, 64, ActivationType::kF32);
    x.Fill([](int64_t, int64_t) { return 1; });
    ASSERT_OK(comm.AllReduceSum(x.view()));  // sets up what recording must not
    ASSERT_OK(comm.Wait());
    x.Fill([](int64_t, int64_t) { return 1; });
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const absl::Status called = comm.AllReduceSum(x.view());
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_OK(called);
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    float expected = 1;
    for (int i = 0; i < 3; ++i, expected *= static_cast<float>(size())) {
      ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    }
    ASSERT_OK(comm.Wait());
    x.Expect([&](int64_t, int64_t) { return expected; });
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  });
}

TEST_P(NcclTest, AnAbortEndsWhatWaitsInBoundedTime) {
  OnRanks([&](Communicator& comm) { ASSERT_OK(comm.Barrier()); });
  const absl::Time start = absl::Now();
  std::thread([&] { ranks_[0]->Abort(absl::CancelledError("first")); }).join();
  ranks_.back()->Abort(absl::InternalError("second"));
  OnRanks([&](Communicator& comm) {
    EXPECT_EQ(comm.Barrier(), absl::CancelledError("first"));
    EXPECT_EQ(comm.Wait(), absl::CancelledError("first"));
  });
  ranks_.clear();
  for (const Stream& stream : streams_) EXPECT_OK(stream.Synchronize());
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
}

TEST_P(NcclTest, AGroupCanBeConnectedAgain) {
  ranks_[0]->Abort(absl::CancelledError("over"));
  std::vector<NcclRank> ranks;
  for (int r = 0; r < size(); ++r) ranks.push_back({r, streams_[static_cast<size_t>(r)].get()});
  ASSERT_OK_AND_ASSIGN(ranks_, ConnectNcclRanks(ranks, absl::Seconds(20), nullptr));
  OnRanks([&](Communicator& comm) {
    ASSERT_OK(comm.Barrier());
    ASSERT_OK(comm.Wait());
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclTest, ::testing::Values(1, 2, 4),
                         [](const auto& info) { return std::to_string(info.param) + "Gpus"; });

}  // namespace
}  // namespace loopserve::worker::cuda
