#include "worker/backend/cuda/matmul/kernels/skinny_mma_kernel.cuh"

namespace loopserve::worker::cuda {

cudaError_t LaunchSkinnyMma4Bit(WeightType type, const SkinnyProduct& product,
                                cudaStream_t stream) {
  switch (type) {
    case WeightType::kQ4_0:
      return LaunchCodec<PackedCodec<WeightType::kQ4_0>>(product, stream);
    case WeightType::kQ4_1:
      return LaunchCodec<PackedCodec<WeightType::kQ4_1>>(product, stream);
    case WeightType::kQ4_K:
      return LaunchCodec<PackedCodec<WeightType::kQ4_K>>(product, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace loopserve::worker::cuda
