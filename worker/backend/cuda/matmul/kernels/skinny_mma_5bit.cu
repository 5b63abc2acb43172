#include "worker/backend/cuda/matmul/kernels/skinny_mma_kernel.cuh"

namespace loopserve::worker::cuda {

cudaError_t LaunchSkinnyMma5Bit(WeightType type, const SkinnyProduct& product,
                                cudaStream_t stream) {
  switch (type) {
    case WeightType::kQ5_0:
      return LaunchCodec<PackedCodec<WeightType::kQ5_0>>(product, stream);
    case WeightType::kQ5_1:
      return LaunchCodec<PackedCodec<WeightType::kQ5_1>>(product, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace loopserve::worker::cuda
