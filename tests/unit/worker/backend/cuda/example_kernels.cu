#include <cuda_runtime.h>

#include "tests/unit/worker/backend/cuda/example_kernels.h"

namespace loopserve::tests {
namespace {

__device__ float added = 1.0f;

__global__ void ExampleKernel(float* values) {
  extern __shared__ float scratch[];
  scratch[threadIdx.x] = values[threadIdx.x] + added;
  values[threadIdx.x] = scratch[threadIdx.x];
}

__global__ void ExampleClusterKernel(float* values) { values[blockIdx.x] = added; }

}  // namespace

cudaError_t LaunchExample(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          float* values) {
  ExampleKernel<<<grid, block, shared_bytes, stream>>>(values);
  return cudaGetLastError();
}

cudaError_t AllowShared(int bytes) {
  return cudaFuncSetAttribute(ExampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

cudaError_t LaunchExampleClusters(unsigned int blocks, unsigned int cluster, cudaStream_t stream,
                                  float* values) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(32);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, ExampleClusterKernel, values);
}

cudaError_t BlocksPerMultiprocessor(int* blocks, int threads, size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, ExampleKernel, threads,
                                                       shared_bytes);
}

}  // namespace loopserve::tests
