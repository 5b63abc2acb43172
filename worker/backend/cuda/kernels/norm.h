// Root mean square norms (backend.h: RmsNorm and AddRmsNorm).
#pragma once

#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// out = x / sqrt(mean(x^2) + eps) * weight; `weight` is x.cols floats. out may be x.
cudaError_t LaunchRmsNorm(TensorView x, const float* weight, float eps, TensorView out,
                          cudaStream_t stream);
// residual += x, then out = RmsNorm(residual). `residual` is f32.
cudaError_t LaunchAddRmsNorm(TensorView residual, TensorView x, const float* weight, float eps,
                             TensorView out, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
