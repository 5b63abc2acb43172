// From the runtime's error codes to absl::Status.
//
//   CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
//   CUDA_RETURN_IF_ERROR(LaunchRmsNorm(x, weight, eps, out, stream));
//
// An error of a call is cleared from the thread, so that the next call that succeeds says so.
// Errors that break the context (an illegal address, say) are not to be cleared: every later call
// tells them again, and only a new process helps.
//
// Thread rule: pure functions.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace loopserve::worker::cuda {

// Ok; ResourceExhausted when the device or the host has not that much memory left; otherwise
// Internal, with the text of the call and what the runtime says of its error.
absl::Status ToStatus(cudaError_t error, absl::string_view call);

}  // namespace loopserve::worker::cuda

#define CUDA_RETURN_IF_ERROR(expr)                                            \
  do {                                                                        \
    if (const cudaError_t cuda_error_ = (expr); cuda_error_ != cudaSuccess) { \
      return ::loopserve::worker::cuda::ToStatus(cuda_error_, #expr);         \
    }                                                                         \
  } while (false)
