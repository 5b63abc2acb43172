#include "worker/backend/cuda/matmul/kernels/skinny_mma_kernel.cuh"

namespace loopserve::worker::cuda {

cudaError_t LaunchSkinnyMmaBf16(const SkinnyProduct& product, cudaStream_t stream) {
  return LaunchCodec<Bf16Codec>(product, stream);
}

}  // namespace loopserve::worker::cuda
