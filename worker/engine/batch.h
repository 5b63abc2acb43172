// Batch: turns a Schedule over sequences into the StepPlan that the ranks execute.
#pragma once

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/sequence.h"
#include "worker/engine/step.h"
#include "worker/model/model.h"

namespace loopserve::worker {

// What the scheduler needs to know of each sequence. `freed_blocks` stays 0: only the KV cache
// knows it.
SequenceView ViewOf(const Sequence& sequence);

// One part per item, in order. Every item's sequence holds the blocks for its rows already; its KV
// policy is asked here. The plan points into the sequences (blocks are copied, policy plans are
// not), which must stay until the step is over.
absl::StatusOr<std::shared_ptr<const StepPlan>> MakeStepPlan(
    std::span<const StepItem> items, std::span<const std::unique_ptr<Sequence>> sequences,
    const ModelConfig& model, int64_t block_tokens);

}  // namespace loopserve::worker
