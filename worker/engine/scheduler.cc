#include "worker/engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <optional>

namespace loopserve::worker {

struct Scheduler::Step {
  std::span<const SequenceView> sequences;
  int64_t free_blocks = 0;
  const StepCost& cost;
  FairShare& share;
};

const Schedule& Scheduler::Plan(std::span<const SequenceView> sequences, int64_t free_blocks,
                                const StepCost& cost, FairShare& share) {
  schedule_.items.clear();
  schedule_.preempt.clear();
  preempted_.assign(sequences.size(), false);
  by_age_.clear();
  for (size_t i = 0; i < sequences.size(); ++i) by_age_.push_back(i);
  std::ranges::sort(by_age_, {}, [&](size_t index) { return sequences[index].order; });
  Step step{sequences, free_blocks, cost, share};
  TakeDecodes(step);
  AddDrafts(step);
  TakePrefill(step);
  return schedule_;
}

void Scheduler::TakeDecodes(Step& step) {
  for (const size_t index : by_age_) {
    const SequenceView& sequence = step.sequences[index];
    if (!sequence.restoring && sequence.pending == 1) TakeRows(step, index, 1);
  }
}

void Scheduler::AddDrafts(Step& step) {
  const bool prefills = std::ranges::any_of(
      step.sequences, [](const SequenceView& s) { return !s.restoring && s.pending > 1; });
  int64_t room = limits_.max_step_tokens - static_cast<int64_t>(schedule_.items.size()) -
                 (prefills ? limits_.min_prefill_rows : 0);
  room = std::min(room, limits_.max_draft_rows);
  for (StepItem& item : schedule_.items) {
    const SequenceView& sequence = step.sequences[item.index];
    const int64_t drafts = std::min(sequence.drafts, room);
    if (drafts <= 0) continue;
    item.drafts = std::min(drafts, SlotsAfter(step, sequence, item));
    item.rows += item.drafts;
    room -= item.drafts;
  }
}

// How many tokens more the sequence's blocks hold. It gets one more block, if there are enough for
// everybody's next one.
int64_t Scheduler::SlotsAfter(Step& step, const SequenceView& sequence, StepItem& item) const {
  const int64_t held = (sequence.blocks + item.new_blocks) * limits_.block_tokens;
  const int64_t slots = held - sequence.kv_tokens - item.rows;
  const bool rich = step.free_blocks > static_cast<int64_t>(step.sequences.size());
  if (slots >= sequence.drafts || !rich) return slots;
  ++item.new_blocks;
  --step.free_blocks;
  return slots + limits_.block_tokens;
}

void Scheduler::TakePrefill(Step& step) {
  const bool timed = !schedule_.items.empty();
  claimants_.clear();
  for (const size_t index : by_age_) {
    const SequenceView& sequence = step.sequences[index];
    if (sequence.restoring || sequence.pending <= 1 || preempted_[index]) continue;
    claimants_.push_back({.tenant = sequence.tenant, .order = sequence.order});
  }
  step.share.Update(claimants_);
  while (const std::optional<FairShare::Turn> turn = step.share.Next()) {
    const size_t index = IndexOf(step, turn->order);
    const int64_t left = step.sequences[index].pending - PlannedRows(index);
    const int64_t room = RoomFor(step, index, timed);
    if (room == 0) return;
    const int64_t rows = std::min({left, turn->rows, room});
    if (TakeRows(step, index, rows)) {
      step.share.Charge(rows, rows == left);
    } else {
      step.share.Pass();
    }
  }
}

// How many more rows of prefill the step has room for, if they are of this sequence.
int64_t Scheduler::RoomFor(const Step& step, size_t index, bool timed) const {
  StepShape shape;
  int64_t prefill = 0;
  for (const StepItem& item : schedule_.items) {
    shape.Add(step.sequences[item.index].kv_tokens, item.rows);
    if (step.sequences[item.index].pending > 1) prefill += item.rows;
  }
  const int64_t most = limits_.max_step_tokens - shape.rows;
  if (!timed || limits_.max_step_time == absl::InfiniteDuration()) return most;
  const int64_t kv_tokens = step.sequences[index].kv_tokens + PlannedRows(index);
  const int64_t fits = step.cost.RowsWithin(limits_.max_step_time, shape, kv_tokens, most);
  return std::min(most, std::max(fits, limits_.min_prefill_rows - prefill));
}

// Plans further rows of a sequence. False when it cannot have them in this step.
bool Scheduler::TakeRows(Step& step, size_t index, int64_t rows) {
  if (preempted_[index]) return false;
  auto item = ItemOf(index);
  if (item == schedule_.items.end() &&
      static_cast<int64_t>(schedule_.items.size()) == limits_.max_batch) {
    return false;
  }
  const SequenceView& sequence = step.sequences[index];
  const int64_t planned = PlannedRows(index) + rows;
  const int64_t end = sequence.kv_tokens + planned;
  const int64_t blocks = (end + limits_.block_tokens - 1) / limits_.block_tokens;
  const int64_t held = sequence.blocks + (item == schedule_.items.end() ? 0 : item->new_blocks);
  const int64_t new_blocks = std::max<int64_t>(0, blocks - held);
  while (new_blocks > step.free_blocks) {
    if (!PreemptFor(step, index)) return false;
  }
  step.free_blocks -= new_blocks;
  item = ItemOf(index);  // a preempted one may have stood before it
  if (item == schedule_.items.end()) {
    schedule_.items.push_back({.index = index});
    item = std::prev(schedule_.items.end());
  }
  item->rows = planned;
  item->new_blocks += new_blocks;
  item->completes = planned == sequence.pending;
  return true;
}

// Makes the youngest sequence give up its blocks. False when `index` cannot run in this step: it
// was the youngest itself, or only sequences that are being restored are younger.
bool Scheduler::PreemptFor(Step& step, size_t index) {
  bool wait = false;
  for (auto it = by_age_.rbegin(); *it != index; ++it) {
    if (preempted_[*it]) continue;
    if (step.sequences[*it].restoring) {
      wait = true;
      continue;
    }
    Preempt(step, *it);
    return true;
  }
  // Alone, it keeps what it has: the missing block is on its way back from somewhere.
  if (!wait && index != by_age_.front()) Preempt(step, index);
  return false;
}

void Scheduler::Preempt(Step& step, size_t index) {
  preempted_[index] = true;
  schedule_.preempt.push_back(index);
  step.free_blocks += step.sequences[index].freed_blocks;
  const auto planned = ItemOf(index);
  if (planned == schedule_.items.end()) return;
  step.free_blocks += planned->new_blocks;
  schedule_.items.erase(planned);
}

size_t Scheduler::IndexOf(const Step& step, uint64_t order) const {
  return *std::ranges::lower_bound(by_age_, order, {},
                                   [&](size_t index) { return step.sequences[index].order; });
}

std::vector<StepItem>::iterator Scheduler::ItemOf(size_t index) {
  return std::ranges::find(schedule_.items, index, &StepItem::index);
}

int64_t Scheduler::PlannedRows(size_t index) const {
  const auto item = std::ranges::find(schedule_.items, index, &StepItem::index);
  return item == schedule_.items.end() ? 0 : item->rows;
}

int64_t AdmissionReserve(int64_t running) { return running; }

}  // namespace loopserve::worker
