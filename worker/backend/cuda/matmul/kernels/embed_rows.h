// Rows of a matrix of the vocabulary by token. The conventions of kernels/launch.h hold.
#pragma once

#include <cstdint>

#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/cuda/matmul/device_weight.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

// out[t, :] = row tokens[t] - first of the table, zeros where it has no such row. `tokens`:
// out.rows of them in device memory. cudaErrorInvalidValue for another width, and for E4M3 codes.
cudaError_t LaunchEmbedRows(const DeviceWeight& table, const int32_t* tokens, int32_t first,
                            TensorView out, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
