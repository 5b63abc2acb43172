#include "worker/backend/cuda/flashinfer/sm90_prefill.cuh"

namespace loopserve::worker::cuda {

template cudaError_t LaunchSm90<64>(const Sm90Launch& launch, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
