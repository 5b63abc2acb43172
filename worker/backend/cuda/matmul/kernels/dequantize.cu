// A warp decodes one record, with the codecs of the skinny products.
#include "worker/backend/cuda/matmul/kernels/codecs.cuh"
#include "worker/backend/cuda/matmul/kernels/convert.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Values 4m ... 4m + 3 of the lane's eight.
template <class Codec>
__device__ __forceinline__ uint2 Decode(const typename Codec::Tile& tile, int g, int h, int m,
                                        const uint32_t (&a)[2][4]) {
  const float scale = Codec::Scale(tile, g, h, m);
  const float min = Codec::Min(tile, g, h);
  const uint32_t first = a[m][h];
  const uint32_t second = a[m][h + 2];
  return {PackBf16(scale * LowBf16(first) + min, scale * HighBf16(first) + min),
          PackBf16(scale * LowBf16(second) + min, scale * HighBf16(second) + min)};
}

template <WeightType kType>
__global__ void __launch_bounds__(kThreads)
    Dequantize(SkinnyWeight matrix, int64_t cols, int64_t first_row, int64_t count,
               __nv_bfloat16* to) {
  using Codec = PackedCodec<kType>;
  const int64_t col_tiles = TilesOf(cols, kTileCols);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row_tile = warp / col_tiles;
  const int64_t col_tile = warp % col_tiles;
  if (row_tile * kTileRows >= count) return;
  typename Codec::Tile tile;
  Codec::Load(Codec::RowOf(matrix, first_row / kTileRows + row_tile, cols), col_tile, lane, tile);
#pragma unroll
  for (int g = 0; g < kTileGroups; ++g) {
    const int64_t col = col_tile * kTileCols + g * kGroupCols + (lane % 4) * 4;
    if (col >= cols) return;
    uint32_t a[2][4];
    Codec::Operands(tile, g, a);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = row_tile * kTileRows + lane / 4 + 8 * h;
      if (row >= count) continue;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        *reinterpret_cast<uint2*>(to + row * cols + col + 16 * m) = Decode<Codec>(tile, g, h, m, a);
      }
    }
  }
}

template <WeightType kType>
cudaError_t Launch(const std::byte* matrix, int64_t cols, int64_t first_row, int64_t count,
                   void* to, cudaStream_t stream) {
  const int64_t warps = TilesOf(count, kTileRows) * TilesOf(cols, kTileCols);
  if (warps == 0) return cudaSuccess;
  SkinnyWeight weight;
  weight.data = matrix;
  weight.rows = first_row + count;
  const auto blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
  Dequantize<kType><<<blocks, kThreads, 0, stream>>>(weight, cols, first_row, count,
                                                     static_cast<__nv_bfloat16*>(to));
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchDequantize(WeightType type, const std::byte* matrix, int64_t cols,
                             int64_t first_row, int64_t count, void* to, cudaStream_t stream) {
  if (first_row % kTileRows != 0 || cols % kGroupCols != 0) return cudaErrorInvalidValue;
  switch (type) {
    case WeightType::kQ4_0:
      return Launch<WeightType::kQ4_0>(matrix, cols, first_row, count, to, stream);
    case WeightType::kQ4_1:
      return Launch<WeightType::kQ4_1>(matrix, cols, first_row, count, to, stream);
    case WeightType::kQ5_0:
      return Launch<WeightType::kQ5_0>(matrix, cols, first_row, count, to, stream);
    case WeightType::kQ5_1:
      return Launch<WeightType::kQ5_1>(matrix, cols, first_row, count, to, stream);
    case WeightType::kQ8_0:
      return Launch<WeightType::kQ8_0>(matrix, cols, first_row, count, to, stream);
    case WeightType::kQ4_K:
      return Launch<WeightType::kQ4_K>(matrix, cols, first_row, count, to, stream);
    case WeightType::kQ6_K:
      return Launch<WeightType::kQ6_K>(matrix, cols, first_row, count, to, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace loopserve::worker::cuda
