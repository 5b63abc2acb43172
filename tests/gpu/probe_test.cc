#include "worker/backend/cuda/kernels/probe.h"

#include "tests/gpu/gpu.h"

namespace loopserve::worker::cuda {
namespace {

class ProbeTest : public tests::GpuTest {};

TEST_F(ProbeTest, RunsTheCodeThatWasCompiledForTheDevice) {
  int major = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  int32_t* code = nullptr;
  ASSERT_EQ(cudaMalloc(&code, 2 * sizeof(int32_t)), cudaSuccess);
  ASSERT_EQ(LaunchProbe(code, nullptr), cudaSuccess);
  int32_t got[2] = {};
  ASSERT_EQ(cudaMemcpy(got, code, sizeof(got), cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(cudaFree(code), cudaSuccess);
  EXPECT_EQ(got[0], major == 8 ? 800 : 900);
  EXPECT_EQ(got[1], major == 9 ? 1 : 0);
}

}  // namespace
}  // namespace loopserve::worker::cuda
