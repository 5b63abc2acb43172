#include "worker/backend/cuda/matmul/kernels/fp8_codec.cuh"
#include "worker/backend/cuda/matmul/kernels/skinny_mma_kernel.cuh"

namespace loopserve::worker::cuda {

cudaError_t LaunchSkinnyMmaFp8(const SkinnyProduct& product, cudaStream_t stream) {
  if (product.x_rows > kMaxSkinnyRows) return cudaErrorInvalidValue;
  if (product.x_rows == 0 || UnitsOf(product, kTileRows) == 0) return cudaSuccess;
  return LaunchCodec<Fp8Codec>(product, stream);
}

}  // namespace loopserve::worker::cuda
