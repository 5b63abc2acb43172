#include "worker/backend/cuda/kernels/fp8_rows.h"

#include <algorithm>

#include "worker/backend/cuda/kernels/fp8_rows.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kMaxThreads = 256;

// One block per row. kN: values of a load.
template <int kN, class X>
__global__ void __launch_bounds__(kMaxThreads) ToE4m3(View<X> x, int64_t cols, Fp8Rows to) {
  __shared__ uint32_t scratch[kMaxThreads / kWarp];
  const X* const row = x.row(blockIdx.x);
  uint32_t largest = 0;
  for (int64_t i = int64_t{threadIdx.x} * kVector; i < cols; i += int64_t{blockDim.x} * kVector) {
    float v[kVector];
    ReadChunk<kN>(row, i, cols, v);
    largest = Larger(largest, v);
  }
  WriteCodes<kN>(row, cols, largest, to, blockIdx.x, scratch);
}

}  // namespace

cudaError_t LaunchToE4m3(TensorView x, const Fp8Rows& to, cudaStream_t stream) {
  if (reinterpret_cast<uintptr_t>(to.codes) % 16 != 0) return cudaErrorInvalidValue;
  if (x.rows == 0 || x.cols == 0) return cudaSuccess;
  const int64_t warps = (Fp8Pitch(x.cols) / kVector + kWarp - 1) / kWarp;
  const auto threads = static_cast<unsigned>(std::min<int64_t>(warps * kWarp, kMaxThreads));
  const auto blocks = static_cast<unsigned>(x.rows);
  return WithType(x.type, [&]<class X>(X*) {
    if (CanVectorize(x)) {
      ToE4m3<kVector, X><<<blocks, threads, 0, stream>>>(Typed<X>(x), x.cols, to);
    } else {
      ToE4m3<1, X><<<blocks, threads, 0, stream>>>(Typed<X>(x), x.cols, to);
    }
    return cudaGetLastError();
  });
}

}  // namespace loopserve::worker::cuda
