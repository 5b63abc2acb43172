#include "worker/backend/cuda/device.h"

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

using DeviceTest = LaunchTest;

TEST_F(DeviceTest, KnowsWhatPlansNeed) {
  const absl::StatusOr<Device> device = Device::Open(0);
  ASSERT_OK(device.status());
  EXPECT_EQ(device->index(), 0);
  EXPECT_EQ(device->name(), "Pretended H100");
  EXPECT_EQ(device->multiprocessors(), 132);
  EXPECT_EQ(device->compute_capability(), 90);
  EXPECT_OK(device->MakeCurrent());
}

TEST_F(DeviceTest, WithoutADriverTheWayOutIsToldAndNoErrorIsLeft) {
  fake::SetDeviceCount(0);
  EXPECT_THAT(Device::Open(0).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("cudaErrorNoDevice"), HasSubstr("driver of version 580"))));
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST_F(DeviceTest, AnIndexThatNoDeviceHasIsRefused) {
  for (const int index : {-1, 1}) {
    EXPECT_THAT(Device::Open(index).status(),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         AllOf(HasSubstr("shows 1"), HasSubstr("--tp"),
                               HasSubstr("CUDA_VISIBLE_DEVICES"))));
  }
}

TEST_F(DeviceTest, ADeviceThatIsTooOldIsRefused) {
  fake::SetCapability(7, 5);
  EXPECT_THAT(Device::Open(0).status(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                                 AllOf(HasSubstr("Pretended H100"),
                                                       HasSubstr("7.5"), HasSubstr("needs 8.0"))));
  fake::SetCapability(8, 0);
  EXPECT_EQ(Device::Open(0)->compute_capability(), 80);
}

TEST_F(DeviceTest, ADeviceThatRunsNoneOfOurCodeIsRefused) {
  fake::FailCall("cudaLaunchKernel", 1, cudaErrorNoKernelImageForDevice);
  EXPECT_THAT(Device::Open(0).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("no code for Pretended H100"), HasSubstr("9.0"))));
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_OK(Device::Open(0).status());
  EXPECT_EQ(fake::Launches("Probe").size(), 1u);
}

TEST_F(DeviceTest, ErrorsOfTheRuntimeAreTold) {
  fake::FailCall("cudaGetDeviceProperties", 1, cudaErrorIllegalAddress);
  EXPECT_EQ(Device::Open(0).status().code(), absl::StatusCode::kInternal);
  const absl::StatusOr<Device> device = Device::Open(0);
  ASSERT_OK(device.status());
  fake::FailCall("cudaSetDevice", 1, cudaErrorIllegalAddress);
  EXPECT_EQ(device->MakeCurrent().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace loopserve::worker::cuda
