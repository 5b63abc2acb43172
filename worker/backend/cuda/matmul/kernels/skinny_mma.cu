#include "worker/backend/cuda/matmul/kernels/skinny_mma_kernel.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200; an A100 has fewer
constexpr int64_t kWarpOutputs = 32;       // for more than 16 rows

}  // namespace

int SkinnyOutWarps(const SkinnyProduct& product) {
  const bool fills = UnitsOf(product, kSkinnyOutWarps * kWarpOutputs) >= kMultiprocessors;
  return product.x_rows > 16 && fills ? kSkinnyOutWarps : 1;
}

cudaError_t LaunchSkinnyMma(WeightType type, const SkinnyProduct& product, cudaStream_t stream) {
  if (product.x_rows > kMaxSkinnyRows) return cudaErrorInvalidValue;
  if (product.x_rows == 0 || UnitsOf(product, kTileRows) == 0) return cudaSuccess;
  switch (type) {
    case WeightType::kBF16:
      return LaunchSkinnyMmaBf16(product, stream);
    case WeightType::kQ4_0:
    case WeightType::kQ4_1:
    case WeightType::kQ4_K:
      return LaunchSkinnyMma4Bit(type, product, stream);
    case WeightType::kQ5_0:
    case WeightType::kQ5_1:
      return LaunchSkinnyMma5Bit(type, product, stream);
    case WeightType::kQ6_K:
    case WeightType::kQ8_0:
      return LaunchSkinnyMma8Bit(type, product, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace loopserve::worker::cuda
