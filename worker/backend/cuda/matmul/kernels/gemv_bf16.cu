// A warp computes two outputs over all columns: every lane keeps eight 16-byte loads of weights in
// flight, and meets activations that L1 holds after the first warp has read them.
#include "worker/backend/cuda/matmul/kernels/device_memory.cuh"
#include "worker/backend/cuda/matmul/kernels/skinny.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kOutputs = 2;  // of a warp
constexpr int kUnroll = 4;
constexpr int kChunk = 8;  // values of 16 bytes

__device__ __forceinline__ void Unpack(const uint4& from, float (&to)[kChunk]) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = LowBf16(words[i]);
    to[2 * i + 1] = HighBf16(words[i]);
  }
}

template <int kRows>
__device__ __forceinline__ void Accumulate(const uint4 (&w)[kOutputs],
                                           const __nv_bfloat16* __restrict__ x, int64_t x_stride,
                                           float (&sums)[kOutputs][kRows]) {
  float wide[kOutputs][kChunk];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) Unpack(w[o], wide[o]);
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    float values[kChunk];
    Unpack(__ldg(reinterpret_cast<const uint4*>(x + t * x_stride)), values);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sums[o][t] = fmaf(wide[o][i], values[i], sums[o][t]);
    }
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads) GemvBf16(const __grid_constant__ SkinnyProduct p) {
  int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int index = WeightOfUnit(p, kOutputs, pair);
  if (index < 0) return;
  const SkinnyWeight weight = p.weights[index];
  const int64_t first = pair * kOutputs;
  const __nv_bfloat16* rows[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const int64_t row = first + o < weight.rows ? first + o : weight.rows - 1;
    rows[o] = static_cast<const __nv_bfloat16*>(weight.data) + row * p.cols;
  }
  const auto* x = static_cast<const __nv_bfloat16*>(p.x);
  float sums[kOutputs][kRows] = {};
  int64_t k = lane * kChunk;
  for (; k + (kUnroll - 1) * 32 * kChunk < p.cols; k += kUnroll * 32 * kChunk) {
    uint4 w[kUnroll][kOutputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) w[u][o] = LoadStream16(rows[o] + k + u * 32 * kChunk);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Accumulate<kRows>(w[u], x + k + u * 32 * kChunk, p.x_stride, sums);
    }
  }
  for (; k < p.cols; k += 32 * kChunk) {
    const uint4 w[kOutputs] = {LoadStream16(rows[0] + k), LoadStream16(rows[1] + k)};
    Accumulate<kRows>(w, x + k, p.x_stride, sums);
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        sums[o][t] += __shfl_xor_sync(0xffffffffU, sums[o][t], step);
      }
      if (lane == 0 && first + o < weight.rows && t < p.x_rows) {
        StoreOutput(weight, t, first + o, sums[o][t]);
      }
    }
  }
}

}  // namespace

cudaError_t LaunchGemvBf16(const SkinnyProduct& product, cudaStream_t stream) {
  const int64_t warps = UnitsOf(product, kOutputs);
  if (warps == 0 || product.x_rows == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
  switch (product.x_rows) {
    case 1:
      GemvBf16<1><<<blocks, kThreads, 0, stream>>>(product);
      break;
    case 2:
      GemvBf16<2><<<blocks, kThreads, 0, stream>>>(product);
      break;
    case 3:
      GemvBf16<3><<<blocks, kThreads, 0, stream>>>(product);
      break;
    case 4:
      GemvBf16<4><<<blocks, kThreads, 0, stream>>>(product);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
