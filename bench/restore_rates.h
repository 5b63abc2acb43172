// How fast KV moves between the host and the device, and what decoding notices of it.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "bench/step_runner.h"

namespace loopserve::bench {

struct RestoreRates {
  // Bytes per second of whole blocks: from ordinary host memory to the device, back, and to the
  // device while a batch decodes.
  double to_device = 0;
  double to_host = 0;
  double during = 0;
  // The median step of that batch.
  double alone_seconds = 0;
  double during_seconds = 0;
};

// Moves `blocks` blocks, block by block as a restore does; decodes `steps` tokens of each of
// `batch` sequences behind `depth` tokens. ResourceExhausted when the pool has not that many
// blocks.
absl::StatusOr<RestoreRates> MeasureRestore(StepRunner& runner, int64_t blocks, int64_t batch,
                                            int64_t depth, int64_t steps);

}  // namespace loopserve::bench
