#include "worker/backend/cuda/kernels/gather_parts.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;

// One thread per value; neighbours read and write neighbours. V is as wide as a value.
template <class V>
__global__ void PlacePartsKernel(const V* __restrict__ from, PartColumns parts,
                                 V* __restrict__ full, int64_t rows, int64_t stride) {
  const int64_t col = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (col >= parts.begin[parts.count]) return;
  int part = 0;
  while (col >= parts.begin[part + 1]) ++part;
  const int64_t begin = parts.begin[part];
  const int64_t width = parts.begin[part + 1] - begin;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    full[row * stride + col] = from[rows * begin + row * width + (col - begin)];
  }
}

template <class V>
__global__ void CopyRowsKernel(const V* __restrict__ from, int64_t from_stride, V* __restrict__ to,
                               int64_t to_stride, int64_t rows, int64_t cols) {
  const int64_t col = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (col >= cols) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    to[row * to_stride + col] = from[row * from_stride + col];
  }
}

__global__ void MarkKernel(uint64_t* count, volatile uint64_t* seen) {
  *count += 1;
  *seen = *count;
}

dim3 GridOf(int64_t rows, int64_t cols) {
  const int64_t x = (cols + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(rows < 65535 ? rows : 65535));
}

template <class V>
cudaError_t PlaceAs(const void* from, const PartColumns& parts, TensorView full,
                    cudaStream_t stream) {
  PlacePartsKernel<<<GridOf(full.rows, full.cols), kThreads, 0, stream>>>(
      static_cast<const V*>(from), parts, reinterpret_cast<V*>(full.data), full.rows, full.stride);
  return cudaGetLastError();
}

template <class V>
cudaError_t CopyAs(TensorView from, TensorView to, cudaStream_t stream) {
  CopyRowsKernel<<<GridOf(to.rows, to.cols), kThreads, 0, stream>>>(
      reinterpret_cast<const V*>(from.data), from.stride, reinterpret_cast<V*>(to.data), to.stride,
      to.rows, to.cols);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchPlaceParts(const void* from, const PartColumns& parts, TensorView full,
                             cudaStream_t stream) {
  if (parts.count < 1 || parts.count > kMaxParts || parts.begin[parts.count] != full.cols) {
    return cudaErrorInvalidValue;
  }
  if (full.rows == 0 || full.cols == 0) return cudaSuccess;
  return full.type == ActivationType::kF32 ? PlaceAs<uint32_t>(from, parts, full, stream)
                                           : PlaceAs<uint16_t>(from, parts, full, stream);
}

cudaError_t LaunchCopyRows(TensorView from, TensorView to, cudaStream_t stream) {
  if (from.rows != to.rows || from.cols != to.cols || from.type != to.type) {
    return cudaErrorInvalidValue;
  }
  if (to.rows == 0 || to.cols == 0) return cudaSuccess;
  return to.type == ActivationType::kF32 ? CopyAs<uint32_t>(from, to, stream)
                                         : CopyAs<uint16_t>(from, to, stream);
}

cudaError_t LaunchMark(uint64_t* count, volatile uint64_t* seen, cudaStream_t stream) {
  MarkKernel<<<1, 1, 0, stream>>>(count, seen);
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
