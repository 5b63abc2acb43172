#include "worker/backend/cuda/kernels/elementwise.h"

#include "worker/backend/cuda/kernels/fp8_rows.cuh"
#include "worker/backend/cuda/kernels/values.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;

// out[t, i] = op(out[t, i], x[rows[t], i]); kRead: whether op looks at out's old value.
template <int kN, bool kRead, class X, class Out, class Op>
__global__ void __launch_bounds__(kThreads)
    ZipKernel(View<X> x, const int32_t* __restrict__ rows, View<Out> out, int64_t cols, Op op) {
  const int64_t row = blockIdx.x;
  const int64_t i = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kN;
  if (i >= cols) return;
  float a[kN] = {}, b[kN];
  if constexpr (kRead) LoadN<kN>(out.row(row) + i, a);
  LoadN<kN>(x.row(rows != nullptr ? rows[row] : row) + i, b);
#pragma unroll
  for (int j = 0; j < kN; ++j) a[j] = op(a[j], b[j]);
  StoreN<kN>(out.row(row) + i, a);
}

template <int kN, bool kRead, class Op>
cudaError_t Launch(TensorView x, const int32_t* rows, TensorView out, Op op, cudaStream_t stream) {
  const int64_t steps = (out.cols + kN - 1) / kN;
  const dim3 grid(static_cast<unsigned>(out.rows),
                  static_cast<unsigned>((steps + kThreads - 1) / kThreads));
  return WithType(x.type, [&]<class X>(X*) {
    return WithType(out.type, [&]<class Out>(Out*) {
      ZipKernel<kN, kRead, X, Out>
          <<<grid, kThreads, 0, stream>>>(Typed<X>(x), rows, Typed<Out>(out), out.cols, op);
      return cudaGetLastError();
    });
  });
}

// A view of one row serves every row of `out` with a stride of 0.
template <bool kRead, class Op>
cudaError_t Zip(TensorView x, const int32_t* rows, TensorView out, Op op, cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  if (CanVectorize(x) && CanVectorize(out)) {
    return Launch<kVector, kRead>(x, rows, out, op, stream);
  }
  return Launch<1, kRead>(x, rows, out, op, stream);
}

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Second {
  __device__ float operator()(float, float b) const { return b; }
};
struct SiluTimes {
  // exp(-g) overflows to infinity for a very negative gate, and the quotient is then the 0 it
  // should be.
  __device__ float operator()(float gate, float up) const { return gate / (1 + expf(-gate)) * up; }
};

// One block per row, since a row shares a scale; a thread meets the same columns in both passes.
template <class Gate, class Up>
__global__ void __launch_bounds__(kThreads)
    SiluMulRowsKernel(View<Gate> gate, View<Up> up, int64_t cols, Fp8Rows codes) {
  __shared__ uint32_t scratch[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  uint32_t largest = 0;
  for (int64_t i = int64_t{threadIdx.x} * kVector; i < cols; i += int64_t{kThreads} * kVector) {
    float a[kVector], b[kVector];
    Load8(gate.row(row) + i, a);
    Load8(up.row(row) + i, b);
#pragma unroll
    for (int j = 0; j < kVector; ++j) a[j] = SiluTimes()(a[j], b[j]);
    Store8(gate.row(row) + i, a);
    largest = Larger(largest, a);
  }
  WriteCodes<kVector>(gate.row(row), cols, RoundedBits<Gate>(largest), codes, row, scratch);
}

cudaError_t SiluMulRows(TensorView gate, TensorView up, const Fp8Rows& codes, cudaStream_t stream) {
  return WithType(gate.type, [&]<class Gate>(Gate*) {
    return WithType(up.type, [&]<class Up>(Up*) {
      SiluMulRowsKernel<<<static_cast<unsigned>(gate.rows), kThreads, 0, stream>>>(
          Typed<Gate>(gate), Typed<Up>(up), gate.cols, codes);
      return cudaGetLastError();
    });
  });
}

}  // namespace

cudaError_t LaunchAddBias(TensorView x, const float* bias, cudaStream_t stream) {
  const TensorView row{const_cast<float*>(bias), 1, x.cols, 0};
  return Zip<true>(row, nullptr, x, Sum(), stream);
}

cudaError_t LaunchSiluMul(TensorView gate, TensorView up, cudaStream_t stream,
                          const Fp8Rows& codes) {
  if (codes.codes == nullptr) return Zip<true>(up, nullptr, gate, SiluTimes(), stream);
  if (gate.rows == 0 || gate.cols == 0) return cudaSuccess;
  if (CanVectorize(gate) && CanVectorize(up)) return SiluMulRows(gate, up, codes, stream);
  if (const cudaError_t error = Zip<true>(up, nullptr, gate, SiluTimes(), stream);
      error != cudaSuccess) {
    return error;
  }
  return LaunchToE4m3(gate, codes, stream);
}

cudaError_t LaunchAdd(TensorView residual, TensorView x, cudaStream_t stream) {
  return Zip<true>(x, nullptr, residual, Sum(), stream);
}

cudaError_t LaunchGatherRows(TensorView x, const int32_t* rows, TensorView out,
                             cudaStream_t stream) {
  return Zip<false>(x, rows, out, Second(), stream);
}

}  // namespace loopserve::worker::cuda
