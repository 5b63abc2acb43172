// Scheduler: which sequences run in the next step, and with how many tokens. A pure function.
//
// Continuous batching with chunked prefill. Every step takes
//   1. one row for each sequence that is decoding, oldest first,
//   2. then chunks of the prompts that are still being prefilled, oldest first, as long as
//      max_step_tokens lasts.
// When a sequence needs a block and none is free, the youngest sequence gives up its own and goes
// back to the queue. Age is the order of submission and outlives a preemption, so the oldest
// sequence always advances and nobody starves. A sequence whose KV is being restored cannot be
// preempted: whoever needs its blocks waits for it.
//
// Whether a waiting turn is admitted is decided by AdmissionReserve and by what KvCache::Acquire
// finds: strictly in order, so that a long prompt is not overtaken forever by short ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace loopserve::worker {

struct SchedulerLimits {
  int64_t max_batch = 0;        // sequences
  int64_t max_step_tokens = 0;  // rows; more than max_batch, so that prefill always advances
  int64_t block_tokens = 0;
};

// What the scheduler sees of a sequence that holds blocks.
struct SequenceView {
  uint64_t order = 0;        // of submission; smaller is older
  int64_t kv_tokens = 0;     // computed or restored
  int64_t pending = 0;       // known tokens whose KV is missing: 1 while decoding
  int64_t blocks = 0;        // held
  int64_t freed_blocks = 0;  // that would become available if it were preempted
  bool restoring = false;
};

struct StepItem {
  size_t index = 0;  // into the views
  int64_t rows = 0;
  int64_t new_blocks = 0;  // to allocate before the step
  bool completes = false;  // reaches the last known token: its logits are wanted
  bool operator==(const StepItem&) const = default;
};

struct Schedule {
  std::vector<StepItem> items;
  std::vector<size_t> preempt;  // youngest first; none of them is in `items`
};

// `free_blocks`: that can be allocated now. The result never allocates more than these and what the
// preempted give up.
Schedule PlanStep(const SchedulerLimits& limits, std::span<const SequenceView> sequences,
                  int64_t free_blocks);

// Blocks that must stay free when a further turn is admitted beside `running` sequences: one for
// each, so that the newcomer is not preempted by the next block that somebody fills.
int64_t AdmissionReserve(int64_t running);

}  // namespace loopserve::worker
