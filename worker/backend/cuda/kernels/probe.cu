#include "worker/backend/cuda/kernels/probe.h"

namespace loopserve::worker::cuda {
namespace {

__global__ void Probe(int32_t* code) {
#ifdef __CUDA_ARCH__
  code[0] = __CUDA_ARCH__;
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  code[1] = 1;
#else
  code[1] = 0;
#endif
#endif
}

}  // namespace

cudaError_t LaunchProbe(int32_t* code, cudaStream_t stream) {
  Probe<<<1, 1, 0, stream>>>(code);
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
