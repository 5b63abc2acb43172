// Columns of several ranks into one matrix, and signs of life.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

inline constexpr int kMaxParts = 64;

// Columns [begin[i], begin[i + 1]) of a matrix come from part i. Passed by value to the kernel.
struct PartColumns {
  int count = 0;
  int32_t begin[kMaxParts + 1] = {};
};

// full[r, begin[i] + c] = part i's [r, c]; the parts lie in `from` one after the other, each
// [full.rows, its width] without gaps, in full's type.
cudaError_t LaunchPlaceParts(const void* from, const PartColumns& parts, TensorView full,
                             cudaStream_t stream);

// to = from, both [rows, cols] of one type.
cudaError_t LaunchCopyRows(TensorView from, TensorView to, cudaStream_t stream);

// *count is counted up, then its value is written to *seen, which is host memory that the device
// can write to.
cudaError_t LaunchMark(uint64_t* count, volatile uint64_t* seen, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
