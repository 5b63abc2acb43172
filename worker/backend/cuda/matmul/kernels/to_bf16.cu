#include "worker/backend/cuda/matmul/kernels/convert.h"
#include "worker/backend/cuda/matmul/kernels/device_memory.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ float Read(const TensorView& x, int64_t row, int64_t col) {
  if (col >= x.cols) return 0.0f;
  const int64_t at = row * x.stride + col;
  if (x.type == ActivationType::kF32) return x.data[at];
  return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(x.data)[at]);
}

// A thread writes eight values.
__global__ void __launch_bounds__(kThreads) ToBf16(TensorView x, __nv_bfloat16* to, int64_t pitch) {
  const int64_t chunks = pitch / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= chunks * x.rows) return;
  const int64_t row = i / chunks;
  const int64_t col = i % chunks * 8;
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    words[j] = PackBf16(Read(x, row, col + 2 * j), Read(x, row, col + 2 * j + 1));
  }
  *reinterpret_cast<uint4*>(to + row * pitch + col) = {words[0], words[1], words[2], words[3]};
}

}  // namespace

cudaError_t LaunchToBf16(TensorView x, void* to, int64_t pitch, cudaStream_t stream) {
  if (pitch % 8 != 0 || pitch < x.cols) return cudaErrorInvalidValue;
  const int64_t threads = x.rows * (pitch / 8);
  if (threads == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  ToBf16<<<blocks, kThreads, 0, stream>>>(x, static_cast<__nv_bfloat16*>(to), pitch);
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
