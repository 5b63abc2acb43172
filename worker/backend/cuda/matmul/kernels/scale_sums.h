// The scales of E4M3 operands (cuda/kernels/fp8_layout.h) brought into sums of codes, where the
// library does not. The conventions of cuda/kernels/launch.h hold.
#pragma once

#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// out[t, n] *= x_scales[t] * weight_scales[n].
cudaError_t LaunchScaleSums(TensorView out, const float* x_scales, const float* weight_scales,
                            cudaStream_t stream);

}  // namespace loopserve::worker::cuda
