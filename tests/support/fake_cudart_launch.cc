// Launches: what nvcc's host code registers and calls, and the checks against the device's limits.
#include <algorithm>
#include <cstdint>

#include "tests/support/fake_cudart_state.h"

namespace loopserve::tests::fake_cuda {
namespace {

constexpr int kMaxDynamicShared = 227 << 10;
constexpr int kMaxPortableCluster = 8, kMaxCluster = 16;

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

// Of the launches between a push (<<<...>>>) and its pop (the stub); they can be nested.
thread_local std::vector<Configuration> configurations;

uint64_t Volume(dim3 d) { return uint64_t{d.x} * d.y * d.z; }

std::string Text(dim3 d) {
  return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
}

// The error that a launch beyond the limits gets, with a violation that says which one it is.
cudaError_t Check(const Call& call, const Launch& launch, const Function& function) {
  const std::string& name = function.name;
  if (Volume(launch.grid) == 0 || Volume(launch.block) == 0)
    return call.Violation(name + ": an empty grid or block", cudaErrorInvalidConfiguration);
  if (launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535)
    return call.Violation(name + ": a grid of " + Text(launch.grid), cudaErrorInvalidConfiguration);
  if (launch.block.x > 1024 || launch.block.y > 1024 || launch.block.z > 64 ||
      Volume(launch.block) > 1024)
    return call.Violation(name + ": a block of " + Text(launch.block),
                          cudaErrorInvalidConfiguration);
  if (launch.dynamic_shared_bytes > static_cast<size_t>(function.max_dynamic_shared_bytes))
    return call.Violation(name + ": " + std::to_string(launch.dynamic_shared_bytes) +
                              " bytes of dynamic shared memory of " +
                              std::to_string(function.max_dynamic_shared_bytes) +
                              " that it is allowed",
                          cudaErrorInvalidValue);
  if (launch.grid.x % launch.cluster.x || launch.grid.y % launch.cluster.y ||
      launch.grid.z % launch.cluster.z ||
      Volume(launch.cluster) > static_cast<uint64_t>(function.max_cluster))
    return call.Violation(
        name + ": a cluster of " + Text(launch.cluster) + " in a grid of " + Text(launch.grid),
        cudaErrorInvalidClusterSize);
  if (!Known(launch.stream))
    return call.Violation(name + ": an unknown stream", cudaErrorInvalidResourceHandle);
  return cudaSuccess;
}

cudaError_t DoLaunch(const Call& call, const void* stub, Launch launch) {
  if (call.failed()) return call.error();
  auto function = runtime().functions.find(stub);
  if (function == runtime().functions.end())
    return call.Violation("not a kernel", cudaErrorInvalidDeviceFunction);
  launch.kernel = function->second.name;
  if (cudaError_t error = Check(call, launch, function->second); error != cudaSuccess) return error;
  if (CaptureOf(launch.stream) != nullptr) {
    Launch recorded = launch;
    recorded.captured = true;
    runtime().launches.push_back(recorded);
  }
  return Put(call, launch.stream, [launch](cudaStream_t stream) {
    Launch done = launch;
    done.stream = stream;
    runtime().launches.push_back(done);
  });
}

void ReadAttribute(const cudaLaunchAttribute& attribute, Launch& launch) {
  switch (attribute.id) {
    case cudaLaunchAttributeClusterDimension:
      launch.cluster =
          dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
      break;
    case cudaLaunchAttributeCooperative:
      launch.cooperative = attribute.val.cooperative != 0;
      break;
    case cudaLaunchAttributeProgrammaticStreamSerialization:
      launch.early = attribute.val.programmaticStreamSerializationAllowed != 0;
      break;
    default:
      break;
  }
}

cudaError_t Occupancy(const Call& call, int* blocks, const void* stub, int threads,
                      size_t shared_bytes) {
  if (call.failed()) return call.error();
  auto function = runtime().functions.find(stub);
  if (function == runtime().functions.end())
    return call.Violation("not a kernel", cudaErrorInvalidDeviceFunction);
  if (threads <= 0 || threads > 1024) return call.Return(cudaErrorInvalidValue);
  constexpr int kThreads = 2048, kBlocks = 32, kShared = 228 << 10, kReserved = 1 << 10;
  *blocks = std::min(kThreads / threads, kBlocks);
  *blocks = std::min(*blocks, static_cast<int>(kShared / (shared_bytes + kReserved)));
  if (shared_bytes > static_cast<size_t>(function->second.max_dynamic_shared_bytes)) *blocks = 0;
  return cudaSuccess;
}

}  // namespace
}  // namespace loopserve::tests::fake_cuda

using namespace loopserve::tests::fake_cuda;  // NOLINT: the functions below implement its calls

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterManagedVar(void**, void**, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  std::lock_guard lock(runtime().mutex);
  runtime().functions[stub].name = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                     cudaStream_t stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                       void* stream) {
  if (configurations.empty()) return cudaErrorMissingConfiguration;
  const Configuration& top = configurations.back();
  *grid = top.grid;
  *block = top.block;
  *shared_bytes = top.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  configurations.pop_back();
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  Call call("cudaLaunchKernel");
  const cudaError_t error = DoLaunch(
      call, stub,
      {.grid = grid, .block = block, .dynamic_shared_bytes = shared_bytes, .stream = stream});
  if (error == cudaSuccess && CaptureOf(stream) == nullptr) {
    const std::string& name = runtime().functions.find(stub)->second.name;
    for (const auto& [part, kernel] : runtime().emulated) {
      if (name.find(part) != std::string::npos) kernel(arguments);
    }
  }
  return error;
}

// What the stub of `kernel<<<...>>>` calls; counted as cudaLaunchKernel.
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void* stub, dim3 grid, dim3 block, void**,
                                        size_t shared_bytes, cudaStream_t stream) {
  Call call("cudaLaunchCooperativeKernel");
  return DoLaunch(call, stub,
                  {.grid = grid,
                   .block = block,
                   .dynamic_shared_bytes = shared_bytes,
                   .stream = stream,
                   .cooperative = true});
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void**) {
  Call call("cudaLaunchKernelExC");
  Launch launch{.grid = config->gridDim,
                .block = config->blockDim,
                .dynamic_shared_bytes = config->dynamicSmemBytes,
                .stream = config->stream};
  for (unsigned i = 0; i < config->numAttrs; ++i) ReadAttribute(config->attrs[i], launch);
  return DoLaunch(call, stub, launch);
}

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  Call call("cudaFuncSetAttribute");
  if (call.failed()) return call.error();
  auto function = runtime().functions.find(stub);
  if (function == runtime().functions.end())
    return call.Violation("not a kernel", cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > kMaxDynamicShared)
      return call.Violation(
          function->second.name + " asks for " + std::to_string(value) + " bytes of shared memory",
          cudaErrorInvalidValue);
    function->second.max_dynamic_shared_bytes = value;
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    function->second.max_cluster = value != 0 ? kMaxCluster : kMaxPortableCluster;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* stub) {
  Call call("cudaFuncGetAttributes");
  if (call.failed()) return call.error();
  auto function = runtime().functions.find(stub);
  if (function == runtime().functions.end())
    return call.Violation("not a kernel", cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->maxDynamicSharedSizeBytes = function->second.max_dynamic_shared_bytes;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub,
                                                          int threads, size_t shared_bytes) {
  Call call("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return Occupancy(call, blocks, stub, threads, shared_bytes);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub,
                                                                   int threads, size_t shared_bytes,
                                                                   unsigned int) {
  Call call("cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags");
  return Occupancy(call, blocks, stub, threads, shared_bytes);
}

}  // extern "C"
