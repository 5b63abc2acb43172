// The backend of NVIDIA GPUs: one device, one stream of compute.
//
// Operand buffers are bf16, the residual stream and the logits f32, sums f32. Quantised weights
// stay packed: a product of few rows unpacks them in registers, one of many rows first unpacks a
// slice to bf16. All ops are asynchronous; a step waits for nothing on the host, and decode steps
// are replayed as graphs. Products and attention choose kernels by the number of rows, so a row's
// bits may depend on its company (docs/decisions/0013). Tokens are chosen on the device, the same
// that a host would choose from these logits. Sparse plans (LinePlan, WorkingSet) are
// Unimplemented.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/backend/backend.h"

namespace loopserve::worker {

// FailedPrecondition, with the reason, where there is no driver, no such device, one older than
// compute capability 8.0, or no cuBLASLt library.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions& options);

}  // namespace loopserve::worker
