// What products of E4M3 operands need beside the library: codes made of activations or weights, and
// scales brought into sums. fp8_layout.h shows how operands lie. The conventions of
// cuda/kernels/launch.h hold.
#pragma once

#include <cstdint>

#include "worker/backend/cuda/kernels/fp8_rows.h"
#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

// to.codes[t, :] = x[t, :] / to.scales[t] as E4M3, rounded to nearest even, then zeros up to
// Fp8Pitch(x.cols); to.scales[t] as fp8_layout.h says.
cudaError_t LaunchToE4m3(TensorView x, const Fp8Rows& to, cudaStream_t stream);

// out[t, n] *= x_scales[t] * weight_scales[n].
cudaError_t LaunchScaleSums(TensorView out, const float* x_scales, const float* weight_scales,
                            cudaStream_t stream);

}  // namespace loopserve::worker::cuda
