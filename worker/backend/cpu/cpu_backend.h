// The cpu backend: packed weights, 8-bit integer products, blocked attention, on the best
// instruction set of the machine.
//
// Weights keep the file's codes and scales exactly; activations are rounded to 8 bits per 32
// columns where they meet a quantised matrix, as llama.cpp does. Float matrices are multiplied in
// float32. Every op returns when it is done.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/backend/backend.h"

namespace loopserve::worker {

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const BackendOptions& options);

}  // namespace loopserve::worker
