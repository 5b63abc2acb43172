// The device's properties, errors, and what tests ask of the pretended runtime.
#include <cuda.h>

#include <cstring>

#include "tests/support/fake_cudart_state.h"

namespace loopserve::tests::fake_cuda {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

bool Within(const std::map<const char*, size_t>& ranges, const void* pointer, size_t bytes) {
  const char* begin = static_cast<const char*>(pointer);
  auto after = ranges.upper_bound(begin);
  if (after == ranges.begin()) return false;
  auto range = std::prev(after);
  return begin + bytes <= range->first + range->second;
}

// Values of an H100 SXM.
const std::map<cudaDeviceAttr, int>& Attributes() {
  static const auto* attributes = new std::map<cudaDeviceAttr, int>{
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxBlockDimX, 1024},
      {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64},
      {cudaDevAttrMaxGridDimX, 0x7fffffff},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
      {cudaDevAttrReservedSharedMemoryPerBlock, 1 << 10},
      {cudaDevAttrTotalConstantMemory, 64 << 10},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
      {cudaDevAttrMultiProcessorCount, 132},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
      {cudaDevAttrConcurrentKernels, 1},
      {cudaDevAttrAsyncEngineCount, 3},
      {cudaDevAttrUnifiedAddressing, 1},
      {cudaDevAttrManagedMemory, 1},
      {cudaDevAttrL2CacheSize, 50 << 20},
      {cudaDevAttrMaxPersistingL2CacheSize, 31 << 20},
      {cudaDevAttrStreamPrioritiesSupported, 1},
      {cudaDevAttrCooperativeLaunch, 1},
      {cudaDevAttrCanUseHostPointerForRegisteredMem, 1},
      {cudaDevAttrHostRegisterSupported, 1},
      {cudaDevAttrMemoryPoolsSupported, 1},
      {cudaDevAttrGlobalMemoryBusWidth, 5120},
      {cudaDevAttrEccEnabled, 1},
  };
  return *attributes;
}

int Attribute(cudaDeviceAttr attribute) {
  if (attribute == cudaDevAttrComputeCapabilityMajor) return runtime().capability_major;
  if (attribute == cudaDevAttrComputeCapabilityMinor) return runtime().capability_minor;
  auto found = Attributes().find(attribute);
  return found == Attributes().end() ? 0 : found->second;
}

// The one function of the driver that kernels are given something by: what the copy engine of a
// multiprocessor is told of a matrix. Refuses what the true one does.
CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* address,
                     const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                     const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  bool fits = rank >= 1 && rank <= 5 && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  for (cuuint32_t i = 0; fits && i < rank; ++i)
    fits = sizes[i] > 0 && sizes[i] <= uint64_t{1} << 32 && box[i] > 0 && box[i] <= 256;
  for (cuuint32_t i = 0; fits && i + 1 < rank; ++i)
    fits = strides[i] % 16 == 0 && strides[i] < uint64_t{1} << 40;
  if (!fits) return CUDA_ERROR_INVALID_VALUE;
  std::memset(map, 0, sizeof *map);
  return CUDA_SUCCESS;
}

}  // namespace

Runtime& runtime() {
  static auto* const runtime = new Runtime;
  return *runtime;
}

Call::Call(const char* function, Needs needs) : lock_(runtime().mutex), function_(function) {
  size_t number = ++runtime().calls[function];
  auto& failures = runtime().failures;
  if (auto found = failures.find(function); found != failures.end()) {
    if (auto failure = found->second.extract(number)) error_ = failure.mapped();
  }
  if (error_ == cudaSuccess && needs == kDevice && runtime().device_count == 0)
    error_ = cudaErrorNoDevice;
  if (error_ != cudaSuccess) last_error = error_;
}

cudaError_t Call::Return(cudaError_t error) const {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t Call::Violation(const std::string& what, cudaError_t error) const {
  runtime().violations.push_back(std::string(function_) + ": " + what);
  return Return(error);
}

void Reset() {
  Runtime& r = runtime();
  std::lock_guard lock(r.mutex);
  r.device_count = 1;
  r.device_memory = size_t{80} << 30;
  r.capability_major = 9;
  r.capability_minor = 0;
  r.peers = PeerLink::kNone;
  r.peers_enabled.clear();
  r.calls.clear();
  r.failures.clear();
  r.emulated.clear();
  r.launches.clear();
  r.violations.clear();
  r.graph_launches = 0;
  last_error = cudaSuccess;
  current_device = 0;
}

void Emulate(std::string_view part, std::function<void(void** arguments)> kernel) {
  std::lock_guard lock(runtime().mutex);
  runtime().emulated.emplace_back(part, std::move(kernel));
}

std::vector<Launch> Launches(std::string_view part) {
  std::lock_guard lock(runtime().mutex);
  std::vector<Launch> found;
  for (const Launch& launch : runtime().launches) {
    if (launch.kernel.find(part) != std::string::npos) found.push_back(launch);
  }
  return found;
}

Alive alive() {
  const Runtime& r = runtime();
  std::lock_guard lock(runtime().mutex);
  Alive now{.device_bytes = r.device_bytes,
            .device_allocations = r.device_memory_ranges.size(),
            .pinned_allocations = r.pinned_ranges.size(),
            .streams = r.streams.size(),
            .events = r.events.size(),
            .graphs = r.graphs.size(),
            .graph_execs = r.graph_execs.size()};
  for (const auto& [begin, bytes] : r.pinned_ranges) now.pinned_bytes += bytes;
  return now;
}

size_t graph_launches() {
  std::lock_guard lock(runtime().mutex);
  return runtime().graph_launches;
}

size_t calls(std::string_view function) {
  std::lock_guard lock(runtime().mutex);
  auto found = runtime().calls.find(function);
  return found == runtime().calls.end() ? 0 : found->second;
}

std::vector<std::string> violations() {
  std::lock_guard lock(runtime().mutex);
  return runtime().violations;
}

void FailCall(std::string_view function, size_t nth, cudaError_t error) {
  size_t before = calls(function);
  std::lock_guard lock(runtime().mutex);
  runtime().failures[std::string(function)][before + nth] = error;
}

void SetDeviceCount(int count) {
  std::lock_guard lock(runtime().mutex);
  runtime().device_count = count;
}

void SetDeviceMemory(size_t bytes) {
  std::lock_guard lock(runtime().mutex);
  runtime().device_memory = bytes;
}

void SetPeers(PeerLink link) {
  std::lock_guard lock(runtime().mutex);
  runtime().peers = link;
}

size_t peers_enabled() {
  std::lock_guard lock(runtime().mutex);
  return runtime().peers_enabled.size();
}

void SetCapability(int major, int minor) {
  std::lock_guard lock(runtime().mutex);
  runtime().capability_major = major;
  runtime().capability_minor = minor;
}

bool IsDeviceMemory(const void* pointer, size_t bytes) {
  std::lock_guard lock(runtime().mutex);
  return Within(runtime().device_memory_ranges, pointer, bytes);
}

bool IsPinnedMemory(const void* pointer, size_t bytes) {
  std::lock_guard lock(runtime().mutex);
  return Within(runtime().pinned_ranges, pointer, bytes);
}

}  // namespace loopserve::tests::fake_cuda

using loopserve::tests::fake_cuda::Call;
using loopserve::tests::fake_cuda::PeerLink;
using loopserve::tests::fake_cuda::runtime;

extern "C" {

cudaError_t cudaGetLastError() {
  cudaError_t error = loopserve::tests::fake_cuda::last_error;
  loopserve::tests::fake_cuda::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return loopserve::tests::fake_cuda::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    default:
      return "cudaError";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetDeviceCount(int* count) {
  Call call("cudaGetDeviceCount");
  *count = runtime().device_count;
  return call.error();
}

cudaError_t cudaGetDevice(int* device) {
  Call call("cudaGetDevice");
  *device = loopserve::tests::fake_cuda::current_device;
  return call.error();
}

cudaError_t cudaSetDevice(int device) {
  Call call("cudaSetDevice");
  if (call.failed()) return call.error();
  if (device < 0 || device >= runtime().device_count) return call.Return(cudaErrorInvalidDevice);
  loopserve::tests::fake_cuda::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  Call call("cudaDeviceGetAttribute");
  if (!call.failed()) *value = loopserve::tests::fake_cuda::Attribute(attribute);
  return call.error();
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  using loopserve::tests::fake_cuda::Attribute;
  Call call("cudaGetDeviceProperties");
  if (call.failed()) return call.error();
  *properties = {};
  std::strncpy(properties->name, "Pretended H100", sizeof(properties->name) - 1);
  properties->totalGlobalMem = runtime().device_memory;
  properties->sharedMemPerBlock = Attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  properties->sharedMemPerBlockOptin = Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties->sharedMemPerMultiprocessor = Attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties->regsPerBlock = Attribute(cudaDevAttrMaxRegistersPerBlock);
  properties->warpSize = Attribute(cudaDevAttrWarpSize);
  properties->maxThreadsPerBlock = Attribute(cudaDevAttrMaxThreadsPerBlock);
  properties->maxThreadsPerMultiProcessor = Attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  properties->multiProcessorCount = Attribute(cudaDevAttrMultiProcessorCount);
  properties->l2CacheSize = Attribute(cudaDevAttrL2CacheSize);
  properties->memoryBusWidth = Attribute(cudaDevAttrGlobalMemoryBusWidth);
  properties->asyncEngineCount = Attribute(cudaDevAttrAsyncEngineCount);
  properties->unifiedAddressing = 1;
  properties->major = Attribute(cudaDevAttrComputeCapabilityMajor);
  properties->minor = Attribute(cudaDevAttrComputeCapabilityMinor);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  Call call("cudaDeviceGetStreamPriorityRange");
  *least = 0;
  *greatest = -5;
  return call.error();
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) {
  Call call("cudaDeviceGetPCIBusId");
  if (!call.failed()) std::strncpy(id, "0000:01:00.0", length);
  return call.error();
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  Call call("cudaDeviceCanAccessPeer");
  *can = runtime().peers != PeerLink::kNone;
  return call.error();
}

cudaError_t cudaDeviceGetP2PAttribute(int* value, cudaDeviceP2PAttr attribute, int, int) {
  Call call("cudaDeviceGetP2PAttribute");
  *value = attribute == cudaDevP2PAttrNativeAtomicSupported && runtime().peers == PeerLink::kNvlink;
  return call.error();
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int) {
  Call call("cudaDeviceEnablePeerAccess");
  if (call.failed()) return call.error();
  const int device = loopserve::tests::fake_cuda::current_device;
  if (device == peer || runtime().peers == PeerLink::kNone)
    return call.Violation("no peer", cudaErrorPeerAccessUnsupported);
  const bool first = runtime().peers_enabled.emplace(device, peer).second;
  return call.Return(first ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled);
}

cudaError_t cudaDriverGetVersion(int* version) {
  Call call("cudaDriverGetVersion", Call::kNothing);
  *version = runtime().device_count == 0 ? 0 : 13000;
  return call.error();
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  Call call("cudaRuntimeGetVersion", Call::kNothing);
  *version = CUDART_VERSION;
  return call.error();
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned int,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  using loopserve::tests::fake_cuda::EncodeTiled;
  Call call("cudaGetDriverEntryPointByVersion");
  const bool known = std::string_view(name) == "cuTensorMapEncodeTiled";
  *function = known ? reinterpret_cast<void*>(&EncodeTiled) : nullptr;
  if (status != nullptr)
    *status = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return call.error();
}

}  // extern "C"
