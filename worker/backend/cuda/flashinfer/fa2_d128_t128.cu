#include "worker/backend/cuda/flashinfer/fa2_prefill.cuh"

namespace loopserve::worker::cuda {

template cudaError_t LaunchFa2<128, 128>(const Fa2Launch& launch, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
