// The partial results of split keys become rows of the result.
#include <cuda_bf16.h>

#include <cmath>

#include "worker/backend/cuda/flashinfer/flash_kernels.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kVector = 8;  // bf16 values that a thread loads at once
constexpr int kThreads = 128;

struct alignas(16) Bf16x8 {
  __nv_bfloat162 pairs[kVector / 2];
};

// A thread merges eight values of one (row, query head).
__global__ void __launch_bounds__(kThreads) MergeKernel(MergeLaunch launch) {
  const int lanes = launch.head_dim / kVector;
  const int index = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  const int head = index / lanes;
  if (head >= launch.q_heads) return;
  const int64_t row = blockIdx.x;
  const int64_t column = int64_t{head} * launch.head_dim + index % lanes * kVector;
  const int64_t width = int64_t{launch.q_heads} * launch.head_dim;
  const int64_t first = launch.merge_first[row];
  const int64_t end = launch.merge_first[row + 1];

  float largest = -INFINITY;
  for (int64_t p = first; p < end; ++p) {
    largest = fmaxf(largest, launch.sums[p * launch.q_heads + head]);
  }
  float sum = 0;
  float merged[kVector] = {};
  const auto* const partials = static_cast<const __nv_bfloat16*>(launch.partials);
  for (int64_t p = first; p < end; ++p) {
    const float weight = exp2f(launch.sums[p * launch.q_heads + head] - largest);
    sum += weight;
    const Bf16x8 in = *reinterpret_cast<const Bf16x8*>(partials + p * width + column);
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      const float2 pair = __bfloat1622float2(in.pairs[i]);
      merged[2 * i] += weight * pair.x;
      merged[2 * i + 1] += weight * pair.y;
    }
  }
  Bf16x8 out;
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    out.pairs[i] = __floats2bfloat162_rn(merged[2 * i] / sum, merged[2 * i + 1] / sum);
  }
  auto* const to =
      static_cast<__nv_bfloat16*>(launch.out) + launch.merge_row[row] * launch.out_stride + column;
  *reinterpret_cast<Bf16x8*>(to) = out;
}

}  // namespace

cudaError_t LaunchMerge(const MergeLaunch& launch, cudaStream_t stream) {
  if (launch.rows == 0) return cudaSuccess;
  const int threads = launch.q_heads * launch.head_dim / kVector;
  const dim3 grid(static_cast<unsigned>(launch.rows),
                  static_cast<unsigned>((threads + kThreads - 1) / kThreads));
  MergeKernel<<<grid, kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
