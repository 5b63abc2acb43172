#include "worker/backend/cuda/matmul/kernels/scale_sums.h"

#include "worker/backend/cuda/kernels/values.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;

template <class Out>
__global__ void __launch_bounds__(kThreads)
    ScaleSums(View<Out> out, int64_t cols, const float* __restrict__ x_scales,
              const float* __restrict__ weight_scales) {
  const int64_t col = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (col >= cols) return;
  Out* const at = out.row(blockIdx.x) + col;
  Store(at, Load(at) * x_scales[blockIdx.x] * weight_scales[col]);
}

}  // namespace

cudaError_t LaunchScaleSums(TensorView out, const float* x_scales, const float* weight_scales,
                            cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(out.rows),
                  static_cast<unsigned>((out.cols + kThreads - 1) / kThreads));
  return WithType(out.type, [&]<class Out>(Out*) {
    ScaleSums<Out>
        <<<grid, kThreads, 0, stream>>>(Typed<Out>(out), out.cols, x_scales, weight_scales);
    return cudaGetLastError();
  });
}

}  // namespace loopserve::worker::cuda
