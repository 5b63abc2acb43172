// Copies that bring operands into the form in which cuBLASLt and the skinny kernels read them.
// The conventions of cuda/kernels/launch.h hold.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/tensor.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

// to[t, :] = x[t, :] rounded to bf16, then zeros up to `pitch` columns; rows `pitch` values apart.
cudaError_t LaunchToBf16(TensorView x, void* to, int64_t pitch, cudaStream_t stream);

// to[n, :] = row first_row + n of a quantised matrix, as bf16, rows `cols` values apart. first_row
// is a multiple of 16; `count` rows that the matrix has.
cudaError_t LaunchDequantize(WeightType type, const std::byte* matrix, int64_t cols,
                             int64_t first_row, int64_t count, void* to, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
