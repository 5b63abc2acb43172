// What every test on a GPU begins with: a fixture that is skipped, loudly, where there is none.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

namespace loopserve::tests {

// Skips the test unless a CUDA device can be used; the text is what ctest looks for.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaSuccess && devices > 0) return;
    cudaGetLastError();  // no later call reports this one
    GTEST_SKIP() << "skipped: no CUDA device (" << cudaGetErrorName(error) << ")";
  }
};

}  // namespace loopserve::tests
