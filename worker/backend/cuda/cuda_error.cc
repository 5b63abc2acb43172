#include "worker/backend/cuda/cuda_error.h"

#include "absl/strings/str_cat.h"

namespace loopserve::worker::cuda {

absl::Status ToStatus(cudaError_t error, absl::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // would otherwise be reported by the next launch as its own
  const std::string text =
      absl::StrCat(call, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  return absl::InternalError(text);
}

}  // namespace loopserve::worker::cuda
