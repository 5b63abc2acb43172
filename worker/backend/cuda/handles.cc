#include "worker/backend/cuda/handles.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/units.h"
#include "worker/backend/cuda/cuda_error.h"

namespace loopserve::worker::cuda {

absl::StatusOr<CurrentDevice> CurrentDevice::Set(int device) {
  int previous = 0;
  CUDA_RETURN_IF_ERROR(cudaGetDevice(&previous));
  if (previous == device) return CurrentDevice(kNothingToDo);
  CUDA_RETURN_IF_ERROR(cudaSetDevice(device));
  return CurrentDevice(previous);
}

CurrentDevice::~CurrentDevice() {
  if (previous_ != kNothingToDo) cudaSetDevice(previous_);
}

absl::StatusOr<Stream> Stream::Create(int priority) {
  Stream stream;
  CUDA_RETURN_IF_ERROR(
      cudaStreamCreateWithPriority(&stream.stream_, cudaStreamNonBlocking, priority));
  return stream;
}

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status Stream::Synchronize() const {
  CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
  return absl::OkStatus();
}

absl::StatusOr<Event> Event::Create(bool timing) {
  Event event;
  CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(
      &event.event_,
      timing ? cudaEventBlockingSync : cudaEventDisableTiming | cudaEventBlockingSync));
  return event;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::Status Event::Record(const Stream& stream) const {
  CUDA_RETURN_IF_ERROR(cudaEventRecord(event_, stream.get()));
  return absl::OkStatus();
}

absl::Status Event::Synchronize() const {
  CUDA_RETURN_IF_ERROR(cudaEventSynchronize(event_));
  return absl::OkStatus();
}

// Not all the time, as every question holds up those who launch kernels.
absl::Status Event::AwaitSoon() const {
  using Clock = std::chrono::steady_clock;
  constexpr auto kAsking = std::chrono::microseconds(50);
  constexpr auto kPause = std::chrono::microseconds(2);
  const auto end = Clock::now() + kAsking;
  for (auto next = Clock::now(); next < end; next += kPause) {
    ASSIGN_OR_RETURN(const bool reached, Reached());
    if (reached) return absl::OkStatus();
    while (Clock::now() < next + kPause) {
    }
  }
  return Synchronize();
}

absl::StatusOr<bool> Event::Reached() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  CUDA_RETURN_IF_ERROR(error);
  return true;
}

absl::StatusOr<float> Event::MillisecondsSince(const Event& begin) const {
  float milliseconds = 0;
  CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, begin.get(), event_));
  return milliseconds;
}

absl::StatusOr<bool> IsPinned(const void* host) {
  cudaPointerAttributes attributes{};
  CUDA_RETURN_IF_ERROR(cudaPointerGetAttributes(&attributes, host));
  return attributes.type == cudaMemoryTypeHost;
}

absl::StatusOr<DeviceRegion> DeviceRegion::Create(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0;
    size_t total = 0;
    CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free, &total));
    return absl::ResourceExhaustedError(
        absl::StrCat("the device cannot give ", common::FormatBytes(bytes), ": ",
                     common::FormatBytes(free), " of ", common::FormatBytes(total), " are free"));
  }
  CUDA_RETURN_IF_ERROR(error);
  DeviceRegion region;
  region.data_ = static_cast<std::byte*>(data);
  region.size_ = bytes;
  return region;
}

DeviceRegion::~DeviceRegion() {
  if (data_ != nullptr) cudaFree(data_);
}

absl::StatusOr<PinnedRegion> PinnedRegion::Create(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, std::max<size_t>(bytes, 1), cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return absl::ResourceExhaustedError(
        absl::StrCat("the host cannot pin ", common::FormatBytes(bytes), " of memory"));
  }
  CUDA_RETURN_IF_ERROR(error);
  PinnedRegion region;
  region.data_ = static_cast<std::byte*>(data);
  region.size_ = bytes;
  return region;
}

PinnedRegion::~PinnedRegion() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

}  // namespace loopserve::worker::cuda
