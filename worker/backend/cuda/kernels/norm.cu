#include "worker/backend/cuda/kernels/norm.h"

#include <algorithm>

#include "worker/backend/cuda/kernels/fp8_rows.cuh"
#include "worker/backend/cuda/kernels/values.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kMaxThreads = 1024;

// One block per row. A thread meets the same columns in all passes, so it reads what it wrote.
// kCodes: out goes to `codes`, too; kN is then kVector.
template <int kN, bool kAdd, class X, class Out, bool kCodes>
__global__ void __launch_bounds__(kMaxThreads)
    NormKernel(View<float> residual, View<X> x, const float* __restrict__ weight, float eps,
               View<Out> out, int64_t cols, Fp8Rows codes) {
  __shared__ float scratch[kWarp];
  const int64_t row = blockIdx.x;
  const X* const in = x.row(row);
  float* const sums = kAdd ? residual.row(row) : nullptr;
  float squares = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cols; i += int64_t{blockDim.x} * kN) {
    float v[kN];
    LoadN<kN>(in + i, v);
    if constexpr (kAdd) {
      float r[kN];
      LoadN<kN>(sums + i, r);
#pragma unroll
      for (int j = 0; j < kN; ++j) v[j] += r[j];
      StoreN<kN>(sums + i, v);
    }
#pragma unroll
    for (int j = 0; j < kN; ++j) squares += v[j] * v[j];
  }
  const float mean = BlockSum(squares, scratch) / static_cast<float>(cols);
  const float scale = 1.0F / sqrtf(mean + eps);
  uint32_t largest = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cols; i += int64_t{blockDim.x} * kN) {
    float v[kN], w[kN];
    if constexpr (kAdd) {
      LoadN<kN>(sums + i, v);
    } else {
      LoadN<kN>(in + i, v);
    }
    LoadN<kN>(weight + i, w);
#pragma unroll
    for (int j = 0; j < kN; ++j) v[j] *= scale * w[j];
    StoreN<kN>(out.row(row) + i, v);
    if constexpr (kCodes) largest = Larger(largest, v);
  }
  if constexpr (kCodes) {
    __shared__ uint32_t words[kWarp];
    WriteCodes<kN>(out.row(row), cols, RoundedBits<Out>(largest), codes, row, words);
  }
}

template <int kN, bool kAdd, class X, class Out, bool kCodes>
cudaError_t Launch(TensorView residual, TensorView x, const float* weight, float eps,
                   TensorView out, const Fp8Rows& codes, cudaStream_t stream) {
  const int64_t steps = (x.cols + kN - 1) / kN;
  const auto threads = static_cast<unsigned>(
      std::clamp<int64_t>((steps + kWarp - 1) / kWarp * kWarp, kWarp, kMaxThreads));
  NormKernel<kN, kAdd, X, Out, kCodes><<<static_cast<unsigned>(x.rows), threads, 0, stream>>>(
      Typed<float>(residual), Typed<X>(x), weight, eps, Typed<Out>(out), x.cols, codes);
  return cudaGetLastError();
}

template <bool kAdd>
cudaError_t Norm(TensorView residual, TensorView x, const float* weight, float eps, TensorView out,
                 const Fp8Rows& codes, cudaStream_t stream) {
  if (x.rows == 0 || x.cols == 0) return cudaSuccess;
  const bool wide = CanVectorize(x) && CanVectorize(out) && (!kAdd || CanVectorize(residual)) &&
                    reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  const bool fuses = wide && codes.codes != nullptr;
  const cudaError_t error = WithType(x.type, [&]<class X>(X*) {
    return WithType(out.type, [&]<class Out>(Out*) {
      const auto launch = fuses  ? Launch<kVector, kAdd, X, Out, true>
                          : wide ? Launch<kVector, kAdd, X, Out, false>
                                 : Launch<1, kAdd, X, Out, false>;
      return launch(residual, x, weight, eps, out, codes, stream);
    });
  });
  if (error != cudaSuccess || fuses || codes.codes == nullptr) return error;
  return LaunchToE4m3(out, codes, stream);
}

}  // namespace

cudaError_t LaunchRmsNorm(TensorView x, const float* weight, float eps, TensorView out,
                          cudaStream_t stream, const Fp8Rows& codes) {
  return Norm<false>({}, x, weight, eps, out, codes, stream);
}

cudaError_t LaunchAddRmsNorm(TensorView residual, TensorView x, const float* weight, float eps,
                             TensorView out, cudaStream_t stream, const Fp8Rows& codes) {
  return Norm<true>(residual, x, weight, eps, out, codes, stream);
}

}  // namespace loopserve::worker::cuda
