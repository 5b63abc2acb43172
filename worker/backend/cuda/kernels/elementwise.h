// Ops that work value by value, and copies of rows (backend.h: AddBias, SiluMul, Add, GatherRows).
#pragma once

#include "worker/backend/cuda/kernels/fp8_rows.h"
#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// x[t, :] += bias; `bias` is x.cols floats.
cudaError_t LaunchAddBias(TensorView x, const float* bias, cudaStream_t stream);
// gate = silu(gate) * up. `codes`: where gate goes as E4M3, too.
cudaError_t LaunchSiluMul(TensorView gate, TensorView up, cudaStream_t stream,
                          const Fp8Rows& codes = {});
// residual += x.
cudaError_t LaunchAdd(TensorView residual, TensorView x, cudaStream_t stream);
// out[i, :] = x[rows[i], :]; `rows` is device memory, null: row i itself. The types may differ.
cudaError_t LaunchGatherRows(TensorView x, const int32_t* rows, TensorView out,
                             cudaStream_t stream);

}  // namespace loopserve::worker::cuda
