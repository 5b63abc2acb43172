// Tells which of the compiled versions of our code a device runs.
//
// A binary holds code for some architectures and PTX, which the driver compiles for newer ones. A
// device that none of it fits answers cudaErrorNoKernelImageForDevice at the first launch: asked of
// this kernel, once, that is an error at the start rather than in the first step.
#pragma once

#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// Writes two values to device memory: the architecture the running code was compiled for (800 is
// sm_80, 900 is sm_90), and 1 if it may use what only that very architecture has (sm_90a), else 0.
cudaError_t LaunchProbe(int32_t* code, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
