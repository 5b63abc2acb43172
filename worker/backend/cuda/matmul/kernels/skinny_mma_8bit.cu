#include "worker/backend/cuda/matmul/kernels/skinny_mma_kernel.cuh"

namespace loopserve::worker::cuda {

cudaError_t LaunchSkinnyMma8Bit(WeightType type, const SkinnyProduct& product,
                                cudaStream_t stream) {
  switch (type) {
    case WeightType::kQ6_K:
      return LaunchCodec<PackedCodec<WeightType::kQ6_K>>(product, stream);
    case WeightType::kQ8_0:
      return LaunchCodec<PackedCodec<WeightType::kQ8_0>>(product, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace loopserve::worker::cuda
