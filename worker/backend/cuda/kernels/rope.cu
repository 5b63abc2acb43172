#include "worker/backend/cuda/kernels/rope.h"

#include "worker/backend/cuda/kernels/values.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;

// One thread per pair.
template <class T>
__global__ void __launch_bounds__(kThreads)
    RopeKernel(View<T> x, int32_t heads, int64_t head_dim, const int32_t* __restrict__ positions,
               RopeAngles angles) {
  const int64_t row = blockIdx.x;
  const int64_t at = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (at >= int64_t{heads} * angles.pairs) return;
  const int64_t head = at / angles.pairs;
  const int64_t pair = at % angles.pairs;
  T* const first = x.row(row) + head * head_dim + (angles.interleaved ? 2 * pair : pair);
  T* const second = first + (angles.interleaved ? 1 : angles.pairs);
  const float2 angle =
      reinterpret_cast<const float2*>(angles.values)[int64_t{positions[row]} * angles.pairs + pair];
  const float a = Load(first);
  const float b = Load(second);
  Store(first, a * angle.x - b * angle.y);
  Store(second, a * angle.y + b * angle.x);
}

}  // namespace

cudaError_t LaunchRope(TensorView x, int32_t heads, const int32_t* positions,
                       const RopeAngles& angles, cudaStream_t stream) {
  const int64_t pairs = int64_t{heads} * angles.pairs;
  if (x.rows == 0 || pairs == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(x.rows),
                  static_cast<unsigned>((pairs + kThreads - 1) / kThreads));
  return WithType(x.type, [&]<class T>(T*) {
    RopeKernel<T>
        <<<grid, kThreads, 0, stream>>>(Typed<T>(x), heads, x.cols / heads, positions, angles);
    return cudaGetLastError();
  });
}

}  // namespace loopserve::worker::cuda
