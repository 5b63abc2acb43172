// Joins the partial results of tiles whose keys were split over several thread blocks.
#include "worker/backend/cuda/attention/params.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 64;

// Up to four sums, zeros behind them; at once where they are aligned.
__device__ void LoadSums(const float* from, int width, bool aligned, float* values) {
  if (aligned) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
    return;
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) values[n] = n < width ? from[n] : 0.0f;
}

// One thread block per (tile, KV head's part, packed row).
__global__ void __launch_bounds__(kThreads) Combine(AttentionParams p) {
  const AttentionSplitTile tile = p.split_tiles[blockIdx.x];
  if (tile.rows == 0) return;
  const int part = static_cast<int>(blockIdx.y);
  const int parts = static_cast<int>(gridDim.y);
  const int m = static_cast<int>(blockIdx.z);
  const PackedRows rows = RowsOf(p, tile.sequence, tile.first_row, tile.rows, part);
  if (m >= rows.count) return;
  const int64_t first = PartialIndex(p, tile.first_slot, part, parts, m);
  const int64_t step = int64_t(parts) * p.tile_rows;
  float highest = -INFINITY;
#pragma unroll 4
  for (int i = 0; i < tile.slots; ++i) highest = fmaxf(highest, p.norms[first + i * step].x);
  if (highest == -INFINITY) highest = 0;
  for (int d = threadIdx.x * 4; d < p.head_dim; d += kThreads * 4) {
    const int width = min(4, p.head_dim - d);
    float sums[4] = {0, 0, 0, 0};
    float total = 0;
#pragma unroll 4
    for (int i = 0; i < tile.slots; ++i) {
      const int64_t at = first + i * step;
      const float2 norm = p.norms[at];
      const float weight = exp2f(norm.x - highest);
      total = fmaf(weight, norm.y, total);
      float values[4];
      LoadSums(p.sums + at * p.head_dim + d, width, p.head_dim % 4 == 0, values);
#pragma unroll
      for (int n = 0; n < 4; ++n) sums[n] = fmaf(weight, values[n], sums[n]);
    }
    const float normalizer = Normalizer(total);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (n < width) StoreOut(p, rows, m, d + n, sums[n] * normalizer);
    }
  }
}

}  // namespace

cudaError_t LaunchCombine(const AttentionParams& p, int tiles, int grid_parts,
                          cudaStream_t stream) {
  return LaunchKernel(Combine, dim3(tiles, grid_parts, p.tile_rows), kThreads, 0, stream, p);
}

}  // namespace loopserve::worker::cuda
