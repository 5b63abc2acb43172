// The reference backend: every op written plainly, one row and one value at a time, sums in double.
// It defines what the fast backends have to compute and is slow on purpose.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/backend/backend.h"

namespace loopserve::worker {

absl::StatusOr<std::unique_ptr<Backend>> CreateReferenceBackend(const BackendOptions& options);

}  // namespace loopserve::worker
