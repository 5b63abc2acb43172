// Rotary position embedding (backend.h: Rope).
#pragma once

#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// cos and sin, interleaved, of every position and rotated pair: [positions, pairs, 2], f32.
struct RopeAngles {
  const float* values = nullptr;
  int32_t pairs = 0;
  bool interleaved = true;  // pairs (2i, 2i + 1); else (i, i + pairs)
};

// Rotates each head of x [rows, heads * head_dim] in place by positions[row] (device memory).
cudaError_t LaunchRope(TensorView x, int32_t heads, const int32_t* positions,
                       const RopeAngles& angles, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
