// One token from each row of logits (backend.h: Sample). The conventions of launch.h hold.
#pragma once

#include <cstdint>

#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/sampling.h"

namespace loopserve::worker::cuda {

// `logits` are f32 and adjusted in place. One of `rows` for each, in device memory, as are the
// `adjustments` that these count from. `choices`, one for each row, may be pinned host memory.
// InvalidValue for an empty vocabulary, and one of more than kMostSampledTokens.
cudaError_t LaunchSampleRows(TensorView logits, const RowSampling* rows,
                             const TokenAdjustment* adjustments, RowChoice* choices,
                             cudaStream_t stream);

}  // namespace loopserve::worker::cuda
