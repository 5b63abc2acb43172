// The pretended runtime itself: what other tests rely on it to catch.
#include "tests/support/fake_cudart.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/unit/worker/backend/cuda/example_kernels.h"

namespace loopserve::tests {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FakeCudartTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fake_cuda::Reset();
    before_ = fake_cuda::alive();
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&values_, 1024), cudaSuccess);
  }
  void TearDown() override {
    fake_cuda::Reset();
    EXPECT_EQ(cudaFree(values_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    EXPECT_EQ(fake_cuda::alive(), before_);
  }

  fake_cuda::Alive before_;
  cudaStream_t stream_ = nullptr;
  float* values_ = nullptr;
};

TEST_F(FakeCudartTest, WritesDownEveryLaunch) {
  EXPECT_EQ(LaunchExample(dim3(3, 2), dim3(64), 256, stream_, values_), cudaSuccess);
  auto launches = fake_cuda::Launches("ExampleKernel");
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_EQ(launches[0].grid.x, 3u);
  EXPECT_EQ(launches[0].grid.y, 2u);
  EXPECT_EQ(launches[0].block.x, 64u);
  EXPECT_EQ(launches[0].dynamic_shared_bytes, 256u);
  EXPECT_EQ(launches[0].stream, stream_);
  EXPECT_FALSE(launches[0].captured);
  EXPECT_THAT(fake_cuda::Launches("NoSuchKernel"), IsEmpty());
  EXPECT_THAT(fake_cuda::violations(), IsEmpty());
}

TEST_F(FakeCudartTest, RefusesLaunchesBeyondTheLimits) {
  EXPECT_EQ(LaunchExample(dim3(0), dim3(64), 0, stream_, values_), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchExample(dim3(1), dim3(1025), 0, stream_, values_), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchExample(dim3(1), dim3(512, 4), 0, stream_, values_),
            cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchExample(dim3(1, 65536), dim3(1), 0, stream_, values_),
            cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "the launchers have taken the errors";
  EXPECT_THAT(fake_cuda::Launches(), IsEmpty());
  EXPECT_EQ(fake_cuda::violations().size(), 4u);
}

TEST_F(FakeCudartTest, WantsSharedMemoryBeyondThe48KibToBeAskedFor) {
  EXPECT_EQ(LaunchExample(dim3(1), dim3(64), 100 << 10, stream_, values_), cudaErrorInvalidValue);
  EXPECT_EQ(AllowShared(228 << 10), cudaErrorInvalidValue);
  EXPECT_EQ(AllowShared(100 << 10), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchExample(dim3(1), dim3(64), 100 << 10, stream_, values_), cudaSuccess);
  int blocks = 0;
  EXPECT_EQ(BlocksPerMultiprocessor(&blocks, 256, 100 << 10), cudaSuccess);
  EXPECT_EQ(blocks, 2);
  EXPECT_EQ(AllowShared(48 << 10), cudaSuccess);
}

TEST_F(FakeCudartTest, SeesLaunchAttributes) {
  EXPECT_EQ(LaunchExampleClusters(8, 4, stream_, values_), cudaSuccess);
  auto launches = fake_cuda::Launches("ExampleClusterKernel");
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_EQ(launches[0].cluster.x, 4u);
  EXPECT_TRUE(launches[0].early);
  EXPECT_EQ(LaunchExampleClusters(6, 4, stream_, values_), cudaErrorInvalidClusterSize);
  EXPECT_EQ(LaunchExampleClusters(16, 16, stream_, values_), cudaErrorInvalidClusterSize);
}

TEST_F(FakeCudartTest, CopiesCopyAndStayInsideAllocations) {
  std::vector<float> host(256), back(256);
  std::iota(host.begin(), host.end(), 1.0f);
  EXPECT_EQ(cudaMemcpyAsync(values_, host.data(), 1024, cudaMemcpyHostToDevice, stream_),
            cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(values_ + 1, 0, 4, stream_), cudaSuccess);
  EXPECT_EQ(cudaMemcpy2DAsync(back.data(), 512, values_, 16, 8, 2, cudaMemcpyDeviceToHost, stream_),
            cudaSuccess);
  EXPECT_THAT((std::vector{back[0], back[1], back[128], back[129]}),
              ElementsAre(1.0f, 0.0f, 5.0f, 6.0f));
  EXPECT_THAT(fake_cuda::violations(), IsEmpty());

  EXPECT_EQ(cudaMemcpyAsync(values_ + 1, host.data(), 1024, cudaMemcpyHostToDevice, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(host.data(), values_, 16, cudaMemcpyHostToDevice, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(fake_cuda::violations().size(), 2u);
  EXPECT_TRUE(fake_cuda::IsDeviceMemory(values_ + 255, 4));
  EXPECT_FALSE(fake_cuda::IsDeviceMemory(values_ + 255, 5));
}

TEST_F(FakeCudartTest, KnowsPinnedMemory) {
  void* pinned = nullptr;
  std::vector<char> own(64);
  EXPECT_EQ(cudaHostAlloc(&pinned, 4096, cudaHostAllocDefault), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(own.data(), own.size(), cudaHostRegisterDefault), cudaSuccess);
  EXPECT_TRUE(fake_cuda::IsPinnedMemory(pinned, 4096));
  EXPECT_TRUE(fake_cuda::IsPinnedMemory(own.data(), own.size()));
  EXPECT_EQ(fake_cuda::alive().pinned_bytes, before_.pinned_bytes + 4096 + 64);
  EXPECT_EQ(cudaFreeHost(own.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaHostUnregister(own.data()), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(FakeCudartTest, AGraphDoesItsWorkWhenItIsLaunched) {
  float host = 7.0f, back = 0.0f;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  EXPECT_EQ(cudaMemsetAsync(values_, 0, 1024, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(values_, &host, 4, cudaMemcpyHostToDevice, stream_), cudaSuccess);
  EXPECT_EQ(LaunchExample(dim3(1), dim3(32), 128, stream_, values_), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  EXPECT_EQ(values_[0], 0.0f);
  ASSERT_EQ(fake_cuda::Launches("ExampleKernel").size(), 1u);
  EXPECT_TRUE(fake_cuda::Launches("ExampleKernel")[0].captured);

  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(&back, values_, 4, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  EXPECT_EQ(back, 7.0f);
  EXPECT_EQ(fake_cuda::Launches("ExampleKernel").size(), 3u);
  EXPECT_EQ(fake_cuda::graph_launches(), 2u);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST_F(FakeCudartTest, WaitingOrAllocatingSpoilsACapture) {
  cudaGraph_t graph = nullptr;
  void* memory = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(graph, nullptr);
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST_F(FakeCudartTest, AStreamThatJoinsACaptureHasToComeBack) {
  cudaStream_t side = nullptr;
  cudaEvent_t event = nullptr;
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamCreate(&side), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  for (bool comes_back : {false, true}) {
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
    EXPECT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamWaitEvent(side, event, 0), cudaSuccess);
    EXPECT_EQ(LaunchExample(dim3(1), dim3(32), 128, side, values_), cudaSuccess);
    EXPECT_EQ(cudaEventRecord(event, side), cudaSuccess);
    if (comes_back) {
      EXPECT_EQ(cudaStreamWaitEvent(stream_, event, 0), cudaSuccess);
    }
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph),
              comes_back ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    cudaGetLastError();  // the launchers would report it
  }
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(side), cudaSuccess);
}

TEST_F(FakeCudartTest, FailsTheCallsThatATestAsksFor) {
  void* memory = nullptr;
  fake_cuda::FailCall("cudaMalloc", 2, cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  fake_cuda::FailCall("cudaLaunchKernel", 1, cudaErrorLaunchFailure);
  EXPECT_EQ(LaunchExample(dim3(1), dim3(32), 128, stream_, values_), cudaErrorLaunchFailure);
}

TEST_F(FakeCudartTest, HasAsMuchMemoryAndAsManyDevicesAsATestSays) {
  void* memory = nullptr;
  size_t free = 0, total = 0;
  fake_cuda::SetDeviceMemory(4096);
  EXPECT_EQ(cudaMalloc(&memory, 4096), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(total, 4096u);
  EXPECT_EQ(free, 4096u - 1024u - before_.device_bytes);
  fake_cuda::SetDeviceCount(0);
  int count = 5;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaErrorNoDevice);
}

TEST_F(FakeCudartTest, NamesWhatIsWrong) {
  EXPECT_EQ(cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(values_)),
            cudaErrorInvalidResourceHandle);
  ASSERT_EQ(fake_cuda::violations().size(), 1u);
  EXPECT_THAT(fake_cuda::violations()[0], HasSubstr("cudaStreamSynchronize"));
}

}  // namespace
}  // namespace loopserve::tests
