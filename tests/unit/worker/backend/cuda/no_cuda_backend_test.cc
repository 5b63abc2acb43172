// Where the backend cannot be made, and what it says then.
#include <cstdlib>
#include <iostream>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "tests/unit/worker/backend/cuda/use_fake_lt.h"
#include "worker/backend/cuda/cuda_backend.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class NoCudaBackendTest : public LaunchTest {};

TEST_F(NoCudaBackendTest, ForLackOfADevice) {
  fake::SetDeviceCount(0);
  EXPECT_THAT(CreateCudaBackend({}).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("driver")));
  fake::Reset();
  EXPECT_THAT(CreateCudaBackend({.device = 5}).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no GPU 5")));
}

TEST_F(NoCudaBackendTest, ForALibraryThatDoesNotStart) {
  UseFakeLt().create = CUBLAS_STATUS_NOT_INITIALIZED;
  EXPECT_THAT(CreateCudaBackend({.threads = 1}).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("cublasLtCreate")));
}

TEST_F(NoCudaBackendTest, ForLackOfMemory) {
  UseFakeLt();
  fake::FailCall("cudaHostAlloc", 1, cudaErrorMemoryAllocation);
  EXPECT_EQ(CreateCudaBackend({.threads = 1}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(NoCudaBackendTest, AutoSaysWhyItWasPassedOver) {
  fake::SetDeviceCount(0);
  std::vector<std::string> passed_over;
  const auto backend = CreateBackend({.threads = 1, .passed_over = &passed_over});
  ASSERT_OK(backend.status());
  EXPECT_THAT(passed_over, ElementsAre(AllOf(HasSubstr("cuda"), HasSubstr("driver"))));
}

// In a process of its own, where no other test has loaded the library that pretends.
TEST(NoCublasLtDeathTest, TheWayOutIsTold) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto create = [] {
    const absl::Status status = CreateCudaBackend({.threads = 1}).status();
    const bool told = status.code() == absl::StatusCode::kFailedPrecondition;
    std::cerr << (status.ok() ? "this machine has the library" : status.ToString());
    std::_Exit(status.ok() || told ? 0 : 1);
  };
  EXPECT_EXIT(create(), ::testing::ExitedWithCode(0),
              "this machine has|cublasLtCreate|not found.*install the cuBLAS library of CUDA 13");
}

}  // namespace
}  // namespace loopserve::worker::cuda
