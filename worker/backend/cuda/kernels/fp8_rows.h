// Activations and weights as E4M3, which lie as fp8_layout.h shows: made by a pass of their own, or
// left by a kernel that writes activations anyway, so that the product that reads them next needs
// no such pass. The conventions of launch.h hold.
#pragma once

#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// Where codes go.
struct Fp8Rows {
  void* codes = nullptr;    // [rows, Fp8Pitch(cols)], on 16 bytes; null: not wanted
  float* scales = nullptr;  // [rows]
};

// to.codes[t, :] = x[t, :] / to.scales[t] as E4M3, rounded to nearest even, then zeros up to
// Fp8Pitch(x.cols); to.scales[t] as fp8_layout.h says.
cudaError_t LaunchToE4m3(TensorView x, const Fp8Rows& to, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
