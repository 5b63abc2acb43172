// Kernels that do nothing of use: what the pretended runtime is tried with.
#pragma once

#include <cuda_runtime_api.h>

namespace loopserve::tests {

cudaError_t LaunchExample(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          float* values);
// Raises the limit of dynamic shared memory of LaunchExample's kernel.
cudaError_t AllowShared(int bytes);
// By cudaLaunchKernelEx, as clusters of `cluster` blocks that may start early.
cudaError_t LaunchExampleClusters(unsigned int blocks, unsigned int cluster, cudaStream_t stream,
                                  float* values);
cudaError_t BlocksPerMultiprocessor(int* blocks, int threads, size_t shared_bytes);

}  // namespace loopserve::tests
