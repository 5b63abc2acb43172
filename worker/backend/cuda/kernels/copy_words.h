// Copies of little between the device and pinned host memory by a kernel, which reads or writes the
// host's memory itself. A copy by the device's copy engine waits for all that is queued there, such
// as the restore of some session; this one waits for its stream alone.
#pragma once

#include <cstddef>

#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// More is better left to a copy engine, which needs no multiprocessor.
inline constexpr size_t kMostCopiedBytes = size_t{64} << 20;

// `bytes`, a multiple of 4, from `from` to `to`; one is device memory, the other pinned. Both are
// 4-byte aligned; 16-byte aligned ones are faster.
cudaError_t LaunchCopyWords(const void* from, void* to, size_t bytes, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
