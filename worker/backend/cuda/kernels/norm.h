// Root mean square norms (backend.h: RmsNorm and AddRmsNorm).
#pragma once

#include "worker/backend/cuda/kernels/fp8_rows.h"
#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// out = x / sqrt(mean(x^2) + eps) * weight; `weight` is x.cols floats. out may be x.
// `codes`: where out goes as E4M3, too.
cudaError_t LaunchRmsNorm(TensorView x, const float* weight, float eps, TensorView out,
                          cudaStream_t stream, const Fp8Rows& codes = {});
// residual += x, then out = RmsNorm(residual). `residual` is f32.
cudaError_t LaunchAddRmsNorm(TensorView residual, TensorView x, const float* weight, float eps,
                             TensorView out, cudaStream_t stream, const Fp8Rows& codes = {});

}  // namespace loopserve::worker::cuda
