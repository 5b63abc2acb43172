// Memory: allocations of the device and pinned ones, and copies, which check what they touch.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tests/support/fake_cudart_state.h"

namespace loopserve::tests::fake_cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kPoisoned = size_t{16}
                             << 20;  // the first bytes of an allocation that are not zero

char* Allocate(size_t bytes) {
  char* memory = static_cast<char*>(
      std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment));
  if (memory != nullptr) std::memset(memory, 0xcd, std::min(bytes, kPoisoned));
  return memory;
}

cudaError_t AllocateDevice(const Call& call, void** pointer, size_t bytes) {
  if (call.failed()) return call.error();
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  Runtime& r = runtime();
  if (r.device_bytes + bytes > r.device_memory) return call.Return(cudaErrorMemoryAllocation);
  char* memory = Allocate(bytes);
  if (memory == nullptr) return call.Return(cudaErrorMemoryAllocation);
  r.device_memory_ranges[memory] = bytes;
  r.device_bytes += bytes;
  *pointer = memory;
  return cudaSuccess;
}

cudaError_t FreeDevice(const Call& call, void* pointer) {
  if (call.failed()) return call.error();
  if (pointer == nullptr) return cudaSuccess;
  Runtime& r = runtime();
  auto range = r.device_memory_ranges.find(static_cast<char*>(pointer));
  if (range == r.device_memory_ranges.end())
    return call.Violation("not an allocation of the device", cudaErrorInvalidValue);
  r.device_bytes -= range->second;
  r.device_memory_ranges.erase(range);
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t AllocatePinned(const Call& call, void** pointer, size_t bytes) {
  if (call.failed()) return call.error();
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (ForbiddenByCapture()) return call.Return(cudaErrorStreamCaptureUnsupported);
  char* memory = Allocate(bytes);
  if (memory == nullptr) return call.Return(cudaErrorMemoryAllocation);
  runtime().pinned_ranges[memory] = bytes;
  *pointer = memory;
  return cudaSuccess;
}

// Whether `pointer` is where a copy of this kind says: all of it in one allocation of the device,
// or none of it.
bool SideFits(const void* pointer, size_t bytes, bool device, bool any) {
  bool in_device = IsDeviceMemory(pointer, 1);
  if (in_device) return (device || any) && IsDeviceMemory(pointer, bytes);
  return !device || any;
}

cudaError_t CheckCopy(const Call& call, const void* to, size_t to_bytes, const void* from,
                      size_t from_bytes, cudaMemcpyKind kind) {
  bool any = kind == cudaMemcpyDefault;
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to == nullptr || !SideFits(to, to_bytes, to_device, any))
    return call.Violation("the target is not memory of the kind, or too short",
                          cudaErrorInvalidValue);
  if (from == nullptr || !SideFits(from, from_bytes, from_device, any))
    return call.Violation("the source is not memory of the kind, or too short",
                          cudaErrorInvalidValue);
  return cudaSuccess;
}

cudaError_t Copy(const Call& call, void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                 cudaStream_t stream) {
  if (call.failed()) return call.error();
  if (bytes == 0) return cudaSuccess;
  cudaError_t error = CheckCopy(call, to, bytes, from, bytes, kind);
  if (error != cudaSuccess) return error;
  return Put(call, stream, [=](cudaStream_t) { std::memmove(to, from, bytes); });
}

cudaError_t Set(const Call& call, void* to, int value, size_t bytes, cudaStream_t stream) {
  if (call.failed()) return call.error();
  if (bytes == 0) return cudaSuccess;
  if (!IsDeviceMemory(to, bytes))
    return call.Violation("not memory of the device, or too short", cudaErrorInvalidValue);
  return Put(call, stream, [=](cudaStream_t) { std::memset(to, value, bytes); });
}

}  // namespace
}  // namespace loopserve::tests::fake_cuda

using namespace loopserve::tests::fake_cuda;  // NOLINT: the functions below implement its calls

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  Call call("cudaMalloc");
  if (!call.failed() && ForbiddenByCapture()) return call.Return(cudaErrorStreamCaptureUnsupported);
  return AllocateDevice(call, pointer, bytes);
}

cudaError_t cudaFree(void* pointer) {
  Call call("cudaFree");
  if (pointer != nullptr && ForbiddenByCapture())
    return call.Return(cudaErrorStreamCaptureUnsupported);
  return FreeDevice(call, pointer);
}

cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  Call call("cudaMallocAsync");
  if (!Known(stream)) return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  return AllocateDevice(call, pointer, bytes);
}

cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  Call call("cudaFreeAsync");
  if (!Known(stream)) return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  return FreeDevice(call, pointer);
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned int) {
  Call call("cudaHostAlloc");
  return AllocatePinned(call, pointer, bytes);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  Call call("cudaMallocHost");
  return AllocatePinned(call, pointer, bytes);
}

cudaError_t cudaFreeHost(void* pointer) {
  Call call("cudaFreeHost");
  if (call.failed()) return call.error();
  if (pointer == nullptr) return cudaSuccess;
  Runtime& r = runtime();
  if (r.registered.contains(static_cast<char*>(pointer)) ||
      r.pinned_ranges.erase(static_cast<char*>(pointer)) == 0)
    return call.Violation("not a pinned allocation", cudaErrorInvalidValue);
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned int) {
  Call call("cudaHostRegister");
  if (call.failed()) return call.error();
  if (pointer == nullptr || bytes == 0) return call.Return(cudaErrorInvalidValue);
  if (IsPinnedMemory(pointer, 1)) return call.Return(cudaErrorHostMemoryAlreadyRegistered);
  runtime().pinned_ranges[static_cast<char*>(pointer)] = bytes;
  runtime().registered.insert(static_cast<char*>(pointer));
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* pointer) {
  Call call("cudaHostUnregister");
  if (call.failed()) return call.error();
  if (runtime().registered.erase(static_cast<char*>(pointer)) == 0)
    return call.Return(cudaErrorHostMemoryNotRegistered);
  runtime().pinned_ranges.erase(static_cast<char*>(pointer));
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int) {
  Call call("cudaHostGetDevicePointer");
  if (call.failed()) return call.error();
  if (!IsPinnedMemory(host, 1)) return call.Return(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  Call call("cudaPointerGetAttributes");
  if (call.failed()) return call.error();
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->device = -1;
  if (IsDeviceMemory(pointer, 1) || IsPinnedMemory(pointer, 1)) {
    attributes->type = IsDeviceMemory(pointer, 1) ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->device = 0;
    attributes->devicePointer = const_cast<void*>(pointer);
    if (attributes->type == cudaMemoryTypeHost)
      attributes->hostPointer = const_cast<void*>(pointer);
  }
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Call call("cudaMemGetInfo");
  if (call.failed()) return call.error();
  *total = runtime().device_memory;
  *free = *total - std::min(*total, runtime().device_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Call call("cudaMemcpy");
  if (!call.failed() && ForbiddenByCapture()) return call.Return(cudaErrorStreamCaptureUnsupported);
  return Copy(call, to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  Call call("cudaMemcpyAsync");
  return Copy(call, to, from, bytes, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  Call call("cudaMemcpy2DAsync");
  if (call.failed()) return call.error();
  if (width == 0 || height == 0) return cudaSuccess;
  if (width > to_pitch || width > from_pitch)
    return call.Violation("rows wider than the pitch", cudaErrorInvalidPitchValue);
  size_t to_bytes = (height - 1) * to_pitch + width;
  size_t from_bytes = (height - 1) * from_pitch + width;
  cudaError_t error = CheckCopy(call, to, to_bytes, from, from_bytes, kind);
  if (error != cudaSuccess) return error;
  return Put(call, stream, [=](cudaStream_t) {
    for (size_t row = 0; row < height; ++row)
      std::memmove(static_cast<char*>(to) + row * to_pitch,
                   static_cast<const char*>(from) + row * from_pitch, width);
  });
}

cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const size_t* bytes,
                                 size_t count, cudaMemcpyAttributes*, size_t*, size_t,
                                 cudaStream_t stream) {
  Call call("cudaMemcpyBatchAsync");
  if (!call.failed() && CaptureOf(stream) != nullptr)
    return call.Return(cudaErrorStreamCaptureUnsupported);
  for (size_t i = 0; i < count; ++i) {
    cudaError_t error = Copy(call, to[i], from[i], bytes[i], cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
  }
  return call.error();
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  Call call("cudaMemset");
  return Set(call, to, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  Call call("cudaMemsetAsync");
  return Set(call, to, value, bytes, stream);
}

}  // extern "C"
