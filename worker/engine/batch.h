// Batch: turns a Schedule over sequences into the StepPlan that the ranks execute.
#pragma once

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/sequence.h"
#include "worker/engine/step.h"
#include "worker/model/model.h"

namespace loopserve::worker {

// What the scheduler needs to know of each sequence. `freed_blocks` stays 0: only the KV cache
// knows it.
SequenceView ViewOf(const Sequence& sequence);

// Replaces `plan`: one part per item, in order. Every item's sequence holds the blocks for its rows
// already; its KV policy is asked here. The plan points into the sequences (blocks are copied,
// policy plans are not), which must stay until the step is over. Memory is reused, so that a plan
// like the last one allocates nothing.
absl::Status FillStepPlan(std::span<const StepItem> items,
                          std::span<const std::unique_ptr<Sequence>> sequences,
                          const ModelConfig& model, int64_t block_tokens, StepPlan& plan);
void Clear(StepPlan& plan);

}  // namespace loopserve::worker
