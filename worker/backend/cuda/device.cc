#include "worker/backend/cuda/device.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/kernels/probe.h"

namespace loopserve::worker::cuda {
namespace {

// Whether the device runs any of the code that this build holds. Waits for it.
absl::Status CheckCode(const Device& device) {
  ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device.index()));
  ASSIGN_OR_RETURN(DeviceRegion code, DeviceRegion::Create(2 * sizeof(int32_t)));
  ASSIGN_OR_RETURN(const Stream stream, Stream::Create());
  const cudaError_t error = LaunchProbe(reinterpret_cast<int32_t*>(code.data()), stream.get());
  if (error == cudaErrorNoKernelImageForDevice) {
    return absl::FailedPreconditionError(
        absl::StrCat("this build has no code for ", device.name(), ", of compute capability ",
                     device.compute_capability() / 10, ".", device.compute_capability() % 10));
  }
  CUDA_RETURN_IF_ERROR(error);
  return stream.Synchronize();
}

}  // namespace

absl::StatusOr<Device> Device::Open(int index) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return absl::FailedPreconditionError(
        absl::StrCat("no usable GPU: ", cudaGetErrorString(error),
                     "; CUDA 13 needs an NVIDIA driver of version 580 or later"));
  }
  if (index < 0 || index >= count) {
    return absl::FailedPreconditionError(absl::StrCat("there is no GPU ", index,
                                                      ": the driver shows ", count,
                                                      "; lower --tp, or see CUDA_VISIBLE_DEVICES"));
  }
  cudaDeviceProp properties{};
  CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, index));
  Device device;
  device.index_ = index;
  device.name_ = properties.name;
  device.multiprocessors_ = properties.multiProcessorCount;
  device.compute_capability_ = properties.major * 10 + properties.minor;
  if (device.compute_capability_ < 80) {
    return absl::FailedPreconditionError(absl::StrCat(device.name_, " has compute capability ",
                                                      properties.major, ".", properties.minor,
                                                      "; this backend needs 8.0"));
  }
  RETURN_IF_ERROR(CheckCode(device));
  return device;
}

absl::Status Device::MakeCurrent() const {
  CUDA_RETURN_IF_ERROR(cudaSetDevice(index_));
  return absl::OkStatus();
}

}  // namespace loopserve::worker::cuda
