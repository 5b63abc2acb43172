#include "worker/backend/cuda/kernels/probe.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "tests/support/fake_cudart.h"

namespace loopserve::worker::cuda {
namespace {

TEST(ProbeTest, IsOneThread) {
  tests::fake_cuda::Reset();
  int32_t* code = nullptr;
  ASSERT_EQ(cudaMalloc(&code, 8), cudaSuccess);
  EXPECT_EQ(LaunchProbe(code, nullptr), cudaSuccess);
  auto launches = tests::fake_cuda::Launches("Probe");
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_EQ(launches[0].grid.x * launches[0].block.x, 1u);
  EXPECT_EQ(cudaFree(code), cudaSuccess);
}

TEST(ProbeTest, TellsThatTheDeviceRunsNoneOfOurCode) {
  tests::fake_cuda::Reset();
  tests::fake_cuda::FailCall("cudaLaunchKernel", 1, cudaErrorNoKernelImageForDevice);
  EXPECT_EQ(LaunchProbe(nullptr, nullptr), cudaErrorNoKernelImageForDevice);
}

}  // namespace
}  // namespace loopserve::worker::cuda
