// The kernel of LaunchSkinnyMma, for any codec.
//
// A warp computes kRowTiles * 16 outputs for up to kColTiles * 8 rows of x, of a part of the
// columns, and keeps several tiles of weights in flight in registers; what it has unpacked of the
// weights it multiplies with all rows of x. Of a thread block's warps kOutWarps have outputs of
// their own, and so many times that share out the columns; nobody waits for anybody until the sums
// of these are added at the end.
//
// Activations come from L1, where the warps of a multiprocessor that are at the same columns find
// what the first of them has brought from L2. More than some rows of them do not stay there for the
// next thread block: then every block brings all of x, and the more outputs it has the less that is
// in all (SkinnyOutWarps).
#pragma once

#include "worker/backend/cuda/matmul/kernels/codecs.cuh"

namespace loopserve::worker::cuda {

inline constexpr int kMmaWarps = 8;
inline constexpr int kMmaThreads = kMmaWarps * 32;

// Thread blocks that a multiprocessor shall hold at once; the sums of many rows take the registers.
constexpr int BlocksPerSm(int col_tiles) {
  if (col_tiles == 1) return 3;
  return col_tiles == 2 ? 2 : 1;
}

__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The B operands of both products of a group: x rows 8 * col_tile + lane / 4, zeros beyond the last
// row and column.
template <class Codec>
__device__ __forceinline__ void LoadX(const SkinnyProduct& p, int col_tile, int64_t group, int lane,
                                      uint32_t (&b)[2][2]) {
  const int row = col_tile * 8 + lane / 4;
  const int64_t k = group * kGroupCols + (lane % 4) * (Codec::kAdjacent ? 8 : 4);
  if (row >= p.x_rows || k >= p.cols) {
    b[0][0] = b[0][1] = b[1][0] = b[1][1] = 0;
    return;
  }
  const auto* x = static_cast<const __nv_bfloat16*>(p.x) + row * p.x_stride + k;
  if constexpr (Codec::kAdjacent) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(x));
    b[0][0] = v.x;
    b[0][1] = v.y;
    b[1][0] = v.z;
    b[1][1] = v.w;
  } else {
    const uint2 first = __ldg(reinterpret_cast<const uint2*>(x));
    const uint2 second = __ldg(reinterpret_cast<const uint2*>(x + 16));
    b[0][0] = first.x;
    b[0][1] = first.y;
    b[1][0] = second.x;
    b[1][1] = second.y;
  }
}

// sums += the products of one group. Element e of `sums` and its like: row lane / 4 + 8 * (e / 2)
// of the weights' tile, row 2 * (lane % 4) + e % 2 of x's.
template <class Codec>
__device__ __forceinline__ void MultiplyGroup(const typename Codec::Tile& tile, int g,
                                              const uint32_t (&a)[2][4], const uint32_t (&b)[2][2],
                                              const float (&x_sums)[4], float (&sums)[4]) {
  if constexpr (!Codec::kScaled) {
    Mma(sums, a[0], b[0]);
    Mma(sums, a[1], b[1]);
  } else if constexpr (Codec::kTwoScales) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float part[4] = {};
      Mma(part, a[m], b[m]);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[e] += Codec::Scale(tile, g, e / 2, m) * part[e];
    }
  } else {
    float part[4] = {};
    Mma(part, a[0], b[0]);
    Mma(part, a[1], b[1]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[e] += Codec::Scale(tile, g, e / 2, 0) * part[e];
      if constexpr (Codec::kHasMin) sums[e] += Codec::Min(tile, g, e / 2) * x_sums[e];
    }
  }
}

template <class Codec, int kColTiles, int kRowTiles>
__device__ __forceinline__ void MultiplyTile(const SkinnyProduct& p, int64_t tile, int lane,
                                             const typename Codec::Tile (&weights)[kRowTiles],
                                             float (&sums)[kRowTiles][kColTiles][4]) {
#pragma unroll
  for (int g = 0; g < Codec::kGroups; ++g) {
    uint32_t a[kRowTiles][2][4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) Codec::Operands(weights[r], g, a[r]);
#pragma unroll
    for (int c = 0; c < kColTiles; ++c) {
      uint32_t b[2][2];
      LoadX<Codec>(p, c, tile * Codec::kGroups + g, lane, b);
      float x_sums[4] = {};
      if constexpr (Codec::kHasMin) {
        const uint32_t ones[4] = {0x3f803f80U, 0x3f803f80U, 0x3f803f80U, 0x3f803f80U};
        Mma(x_sums, ones, b[0]);
        Mma(x_sums, ones, b[1]);
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        MultiplyGroup<Codec>(weights[r], g, a[r], b, x_sums, sums[r][c]);
      }
    }
  }
}

// Adds up the sums of the warps that share outputs and stores them, one tile of x rows after the
// other.
template <class Codec, int kColTiles, int kRowTiles, int kOutWarps>
__device__ __forceinline__ void ReduceAndStore(const SkinnyProduct& p, const SkinnyWeight& weight,
                                               int64_t first_row,
                                               const float (&sums)[kRowTiles][kColTiles][4]) {
  constexpr int kColWarps = kMmaWarps / kOutWarps;
  __shared__ float parts[kColWarps][kOutWarps * kRowTiles][4][32];
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int c = 0; c < kColTiles; ++c) {
    if (c * 8 >= p.x_rows) return;  // of the whole thread block
    if (c > 0) __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        parts[warp / kOutWarps][warp % kOutWarps * kRowTiles + r][e][lane] = sums[r][c][e];
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kOutWarps * kRowTiles * 128; i += kMmaThreads) {
      const int row = i % 16;
      const int x_row = (i / 16) % 8;
      const int tile = i / 128;  // of the thread block
      const int element = (row / 8) * 2 + x_row % 2;
      const int from = (row % 8) * 4 + x_row / 2;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kColWarps; ++w) sum += parts[w][tile][element][from];
      const int64_t out_row = first_row + tile * kTileRows + row;
      if (out_row < weight.rows && c * 8 + x_row < p.x_rows) {
        if constexpr (Codec::kRowScales) sum *= weight.scales[out_row];
        StoreOutput(weight, c * 8 + x_row, out_row, sum);
      }
    }
  }
}

template <class Codec, int kColTiles, int kRowTiles, int kOutWarps>
__global__ void __launch_bounds__(kMmaThreads, BlocksPerSm(kColTiles))
    SkinnyMma(const __grid_constant__ SkinnyProduct p) {
  using Tile = typename Codec::Tile;
  // Tiles in flight: as many as the registers that are left allow.
  constexpr int kTileRegisters = static_cast<int>(sizeof(Tile)) / 4 * kRowTiles;
  constexpr int kLeft = kColTiles <= 2 ? 36 : 24;
  constexpr int kDepth = kTileRegisters >= kLeft ? 1 : kLeft / kTileRegisters;
  constexpr int kColWarps = kMmaWarps / kOutWarps;
  int64_t unit = blockIdx.x;
  const int index = WeightOfUnit(p, kOutWarps * kRowTiles * kTileRows, unit);
  if (index < 0) return;
  const SkinnyWeight weight = p.weights[index];
  const int64_t last_row_tile = TilesOf(weight.rows, kTileRows) - 1;
  const int64_t tiles = TilesOf(p.cols, Codec::kGroups * kGroupCols);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);

  TileRow rows[kRowTiles];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const int64_t row_tile = (unit * kOutWarps + warp % kOutWarps) * kRowTiles + r;
    rows[r] = Codec::RowOf(weight, row_tile < last_row_tile ? row_tile : last_row_tile, p.cols);
  }
  Tile buffer[kDepth][kRowTiles];
  const auto load = [&](Tile(&to)[kRowTiles], int64_t tile) {
    if (tile >= tiles) return;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) Codec::Load(rows[r], tile, lane, to[r]);
  };
  float sums[kRowTiles][kColTiles][4] = {};
  const int64_t first = warp / kOutWarps;
#pragma unroll
  for (int d = 0; d < kDepth; ++d) load(buffer[d], first + d * kColWarps);
  for (int64_t tile = first; tile < tiles; tile += kDepth * kColWarps) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int64_t current = tile + d * kColWarps;
      if (current >= tiles) break;
      MultiplyTile<Codec, kColTiles, kRowTiles>(p, current, lane, buffer[d], sums);
      load(buffer[d], current + kDepth * kColWarps);
    }
  }
  ReduceAndStore<Codec, kColTiles, kRowTiles, kOutWarps>(
      p, weight, unit * kOutWarps * kRowTiles * kTileRows, sums);
}

template <class Codec, int kColTiles, int kRowTiles, int kOutWarps>
cudaError_t LaunchTiles(const SkinnyProduct& product, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(UnitsOf(product, kOutWarps * kRowTiles * kTileRows));
  SkinnyMma<Codec, kColTiles, kRowTiles, kOutWarps><<<blocks, kMmaThreads, 0, stream>>>(product);
  return cudaGetLastError();
}

template <class Codec, int kColTiles>
cudaError_t LaunchManyRows(const SkinnyProduct& product, cudaStream_t stream) {
  if (SkinnyOutWarps(product) == 1) return LaunchTiles<Codec, kColTiles, 2, 1>(product, stream);
  return LaunchTiles<Codec, kColTiles, 2, kSkinnyOutWarps>(product, stream);
}

// For up to kMaxSkinnyRows rows of x, and at least one output.
template <class Codec>
cudaError_t LaunchCodec(const SkinnyProduct& product, cudaStream_t stream) {
  if (product.x_rows <= 8) return LaunchTiles<Codec, 1, 1, 1>(product, stream);
  if (product.x_rows <= 16) return LaunchTiles<Codec, 2, 1, 1>(product, stream);
  if (product.x_rows <= 32) return LaunchManyRows<Codec, 4>(product, stream);
  return LaunchManyRows<Codec, 8>(product, stream);
}

// One translation unit each: skinny_mma_*.cu.
cudaError_t LaunchSkinnyMmaBf16(const SkinnyProduct& product, cudaStream_t stream);
cudaError_t LaunchSkinnyMma4Bit(WeightType type, const SkinnyProduct& product, cudaStream_t stream);
cudaError_t LaunchSkinnyMma5Bit(WeightType type, const SkinnyProduct& product, cudaStream_t stream);
cudaError_t LaunchSkinnyMma8Bit(WeightType type, const SkinnyProduct& product, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
