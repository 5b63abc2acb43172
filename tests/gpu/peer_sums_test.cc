// Sums by a kernel of each rank. One GPU is enough: its ranks then share it, each with a stream of
// its own; where there are more, each has one.
#include "worker/backend/cuda/peer_sums.h"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include <cstring>
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {
namespace {

int Devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// What rank `rank` adds: sums of these depend on their order.
float Part(int rank, int64_t i) {
  const float parts[] = {1e8F, 1.0F, -1e8F, 0.25F};
  return parts[rank % 4] * static_cast<float>(1 + i % 3);
}

class PeerSumsTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (Devices() == 0) GTEST_SKIP() << "skipped: no CUDA device";
    for (int r = 0; r < size(); ++r) {
      const int device = Devices() >= size() ? r : 0;
      ASSERT_EQ(cudaSetDevice(device), cudaSuccess);
      streams_.push_back(*Stream::Create());
      values_.push_back(*DeviceRegion::Create(size_t{1} << 20));
      ranks_.push_back({.device = device, .stream = streams_.back().get()});
    }
    absl::StatusOr<std::unique_ptr<PeerSums>> sums = CreatePeerSums(ranks_);
    if (!sums.ok()) GTEST_SKIP() << "skipped: no CUDA devices for it: " << sums.status();
    sums_ = *std::move(sums);
  }
  static int size() { return GetParam(); }
  void Use(int rank) {
    ASSERT_EQ(cudaSetDevice(ranks_[static_cast<size_t>(rank)].device), cudaSuccess);
  }
  void* Values(int rank) { return values_[static_cast<size_t>(rank)].data(); }
  const Stream& StreamOf(int rank) { return streams_[static_cast<size_t>(rank)]; }

  void Fill(int64_t count, ActivationType type) {
    for (int rank = 0; rank < size(); ++rank) {
      std::vector<std::byte> bytes(static_cast<size_t>(count) * BytesOf(type));
      for (int64_t i = 0; i < count; ++i) Put(bytes.data(), i, Part(rank, i), type);
      Use(rank);
      ASSERT_EQ(cudaMemcpy(Values(rank), bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
                cudaSuccess);
    }
  }
  // The sum in the order of the ranks, rounded at the end.
  void Expect(int64_t count, ActivationType type) {
    std::vector<std::byte> want(static_cast<size_t>(count) * BytesOf(type)), got(want.size());
    for (int64_t i = 0; i < count; ++i) {
      volatile float sum = 0;
      for (int rank = 0; rank < size(); ++rank) sum = sum + Rounded(Part(rank, i), type);
      Put(want.data(), i, sum, type);
    }
    for (int rank = 0; rank < size(); ++rank) {
      Use(rank);
      ASSERT_OK(StreamOf(rank).Synchronize());
      ASSERT_EQ(cudaMemcpy(got.data(), Values(rank), got.size(), cudaMemcpyDeviceToHost),
                cudaSuccess);
      ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0)
          << "rank " << rank << " of " << size() << ", " << count << " values";
    }
  }
  void SumAll(int64_t count, ActivationType type) {
    for (int rank = 0; rank < size(); ++rank) {
      Use(rank);
      ASSERT_OK(sums_->Sum(rank, Values(rank), count, type));
    }
  }

  std::vector<Stream> streams_;
  std::vector<DeviceRegion> values_;
  std::vector<NcclRank> ranks_;
  std::unique_ptr<PeerSums> sums_;

 private:
  static float Rounded(float value, ActivationType type) {
    return type == ActivationType::kF32 ? value : Bf16ToFloat(FloatToBf16(value));
  }
  static void Put(std::byte* values, int64_t at, float value, ActivationType type) {
    if (type == ActivationType::kF32) {
      reinterpret_cast<float*>(values)[at] = value;
    } else {
      reinterpret_cast<uint16_t*>(values)[at] = FloatToBf16(value);
    }
  }
};

TEST_P(PeerSumsTest, SumsInRankOrderAtEverySize) {
  for (const ActivationType type : {ActivationType::kF32, ActivationType::kBf16}) {
    const auto most = static_cast<int64_t>(sums_->most_bytes() / BytesOf(type));
    for (const int64_t count : {int64_t{1}, int64_t{7}, int64_t{8}, int64_t{2049}, int64_t{8192},
                                int64_t{40000}, most - 1, most / 8 * 8}) {
      Fill(count, type);
      SumAll(count, type);
      Expect(count, type);
    }
  }
}

// Each rank's graph goes on counting where the last sum, of whatever kind, has left off.
TEST_P(PeerSumsTest, LivesInGraphs) {
  constexpr int64_t kCount = 5000;
  SumAll(1, ActivationType::kF32);  // loads what recording must not
  std::vector<cudaGraphExec_t> graphs(static_cast<size_t>(size()));
  for (int rank = 0; rank < size(); ++rank) {
    Use(rank);
    cudaGraph_t graph = nullptr;
    const cudaStream_t stream = StreamOf(rank).get();
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const absl::Status put = sums_->Sum(rank, Values(rank), kCount, ActivationType::kF32);
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_OK(put);
    ASSERT_EQ(cudaGraphInstantiate(&graphs[static_cast<size_t>(rank)], graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
  }
  for (int i = 0; i < 5; ++i) {
    Fill(kCount, ActivationType::kF32);
    for (int rank = 0; rank < size(); ++rank) {
      Use(rank);
      ASSERT_EQ(cudaGraphLaunch(graphs[static_cast<size_t>(rank)], StreamOf(rank).get()),
                cudaSuccess);
    }
    Expect(kCount, ActivationType::kF32);
    Fill(9, ActivationType::kBf16);
    SumAll(9, ActivationType::kBf16);
    Expect(9, ActivationType::kBf16);
  }
  for (const cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
}

TEST_P(PeerSumsTest, ManyWithoutAWaitBetweenThem) {
  Fill(8192, ActivationType::kF32);
  for (int i = 0; i < 500; ++i) SumAll(1 + (i * 977) % 8192, ActivationType::kBf16);
  for (int rank = 0; rank < size(); ++rank) EXPECT_OK(StreamOf(rank).Synchronize());
  Fill(8192, ActivationType::kF32);
  SumAll(8192, ActivationType::kF32);
  Expect(8192, ActivationType::kF32);
}

TEST_P(PeerSumsTest, AnAbortEndsAKernelThatWaits) {
  Fill(64, ActivationType::kF32);
  for (int rank = 0; rank + 1 < size(); ++rank) {  // the last one does not come
    Use(rank);
    ASSERT_OK(sums_->Sum(rank, Values(rank), 64, ActivationType::kF32));
  }
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(cudaStreamQuery(StreamOf(0).get()), cudaErrorNotReady);
  static_cast<void>(cudaGetLastError());
  const absl::Time start = absl::Now();
  sums_->Abort();
  for (int rank = 0; rank < size(); ++rank) EXPECT_OK(StreamOf(rank).Synchronize());
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(100));
}

INSTANTIATE_TEST_SUITE_P(Ranks, PeerSumsTest, ::testing::Values(2, 3, 4),
                         [](const auto& info) { return std::to_string(info.param) + "Ranks"; });

}  // namespace
}  // namespace loopserve::worker::cuda
