// Scheduler: which sequences run in the next step, and with how many rows. A function of what it is
// given, and of nothing else; it advances the FairShare.
//
// Continuous batching with chunked prefill. Every step takes
//   1. one row for each sequence that is decoding, oldest first, and further rows for guesses of
//   its
//      next tokens (speculation.h) where there is room for them without taking anybody's blocks,
//   2. then chunks of the prompts that are still being prefilled, in the order of the FairShare, as
//      long as max_step_tokens lasts and, while anybody decodes, as long as the step is predicted
//      to take no longer than max_step_time. Some rows of prefill always find room.
// How a prompt is cut does not change its KV: every operation is row independent, bit for bit.
//
// When a sequence needs a block and none is free, the youngest sequence gives up its own, which are
// parked in the store, and goes back to the queue. Age is the order of submission and outlives a
// preemption, so the oldest sequence always advances and nobody starves. A sequence whose KV is
// being restored cannot be preempted: whoever needs its blocks waits for it.
//
// Whether a waiting turn is admitted is decided by NextToAdmit, AdmissionReserve and what
// KvCache::Acquire finds: a long prompt is not overtaken forever by short ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "worker/engine/fair_share.h"
#include "worker/engine/step_cost.h"

namespace loopserve::worker {

struct SchedulerLimits {
  int64_t max_batch = 0;        // sequences
  int64_t max_step_tokens = 0;  // rows; more than max_batch, so that prefill always advances
  int64_t block_tokens = 0;
  absl::Duration max_step_time = absl::InfiniteDuration();  // while somebody decodes
  int64_t min_prefill_rows = 16;  // of a step, whatever max_step_time says
  int64_t max_draft_rows = 0;     // of a step
};

// What the scheduler sees of a sequence that holds blocks.
struct SequenceView {
  absl::string_view tenant;
  uint64_t order = 0;        // of submission; smaller is older
  int64_t kv_tokens = 0;     // computed or restored
  int64_t pending = 0;       // known tokens whose KV is missing: 1 while decoding
  int64_t blocks = 0;        // held
  int64_t freed_blocks = 0;  // that would become available if it were preempted
  int64_t drafts = 0;        // guessed tokens that are worth a row each; while decoding
  bool restoring = false;
};

struct StepItem {
  size_t index = 0;  // into the views
  int64_t rows = 0;
  int64_t new_blocks = 0;  // to allocate before the step
  bool completes = false;  // reaches the last known token: its logits are wanted
  int64_t drafts = 0;      // of the rows, those of guesses after it, whose logits are wanted, too
  bool operator==(const StepItem&) const = default;
};

struct Schedule {
  std::vector<StepItem> items;
  std::vector<size_t> preempt;  // youngest first; none of them is in `items`
};

// Allocates nothing once it has seen a batch of the size. Thread rule: one thread.
class Scheduler final {
 public:
  explicit Scheduler(const SchedulerLimits& limits) : limits_(limits) {}

  // `free_blocks`: that can be allocated now. The result never allocates more than these and what
  // the preempted give up; it is valid until the next call.
  const Schedule& Plan(std::span<const SequenceView> sequences, int64_t free_blocks,
                       const StepCost& cost, FairShare& share);

 private:
  struct Step;  // what is being planned
  void TakeDecodes(Step& step);
  void AddDrafts(Step& step);
  int64_t SlotsAfter(Step& step, const SequenceView& sequence, StepItem& item) const;
  void TakePrefill(Step& step);
  int64_t RoomFor(const Step& step, size_t index, bool timed) const;
  bool TakeRows(Step& step, size_t index, int64_t rows);
  bool PreemptFor(Step& step, size_t index);
  void Preempt(Step& step, size_t index);
  size_t IndexOf(const Step& step, uint64_t order) const;
  std::vector<StepItem>::iterator ItemOf(size_t index);
  int64_t PlannedRows(size_t index) const;

  const SchedulerLimits limits_;
  Schedule schedule_;
  std::vector<bool> preempted_;
  std::vector<size_t> by_age_;  // oldest first
  std::vector<Claimant> claimants_;
};

// Blocks that must stay free when a further turn is admitted beside `running` sequences: one for
// each, so that the newcomer is not preempted by the next block that somebody fills.
int64_t AdmissionReserve(int64_t running);

}  // namespace loopserve::worker
