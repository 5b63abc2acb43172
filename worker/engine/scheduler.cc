#include "worker/engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

namespace loopserve::worker {
namespace {

class Planner {
 public:
  Planner(const SchedulerLimits& limits, std::span<const SequenceView> sequences,
          int64_t free_blocks, const StepCost& cost, FairShare& share)
      : limits_(limits),
        sequences_(sequences),
        cost_(cost),
        share_(share),
        free_blocks_(free_blocks),
        preempted_(sequences.size(), false) {
    for (size_t i = 0; i < sequences.size(); ++i) by_age_.push_back(i);
    std::sort(by_age_.begin(), by_age_.end(),
              [&](size_t a, size_t b) { return sequences_[a].order < sequences_[b].order; });
  }

  Schedule Run() && {
    for (const size_t index : by_age_) {
      if (!sequences_[index].restoring && sequences_[index].pending == 1) TakeRows(index, 1);
    }
    Prefill();
    return std::move(schedule_);
  }

 private:
  void Prefill() {
    const bool timed = !schedule_.items.empty();
    std::vector<Claimant> claimants;
    for (const size_t index : by_age_) {
      const SequenceView& sequence = sequences_[index];
      if (sequence.restoring || sequence.pending <= 1 || preempted_[index]) continue;
      claimants.push_back({sequence.tenant, sequence.order});
    }
    share_.Update(claimants);
    while (const std::optional<FairShare::Turn> turn = share_.Next()) {
      const size_t index = IndexOf(turn->order);
      const int64_t left = sequences_[index].pending - PlannedRows(index);
      const int64_t room = RoomFor(index, timed);
      if (room == 0) return;
      const int64_t rows = std::min({left, turn->rows, room});
      if (TakeRows(index, rows)) {
        share_.Charge(rows, rows == left);
      } else {
        share_.Pass();
      }
    }
  }

  // How many more rows of prefill the step has room for, if they are of this sequence.
  int64_t RoomFor(size_t index, bool timed) const {
    StepShape step;
    int64_t prefill = 0;
    for (const StepItem& item : schedule_.items) {
      step.Add(sequences_[item.index].kv_tokens, item.rows);
      if (sequences_[item.index].pending > 1) prefill += item.rows;
    }
    const int64_t most = limits_.max_step_tokens - step.rows;
    if (!timed || limits_.max_step_time == absl::InfiniteDuration()) return most;
    const int64_t kv_tokens = sequences_[index].kv_tokens + PlannedRows(index);
    const int64_t fits = cost_.RowsWithin(limits_.max_step_time, step, kv_tokens, most);
    return std::min(most, std::max(fits, limits_.min_prefill_rows - prefill));
  }

  size_t IndexOf(uint64_t order) const {
    return *std::ranges::lower_bound(by_age_, order, {},
                                     [&](size_t index) { return sequences_[index].order; });
  }

  std::vector<StepItem>::iterator ItemOf(size_t index) {
    return std::ranges::find(schedule_.items, index, &StepItem::index);
  }
  int64_t PlannedRows(size_t index) const {
    const auto item = std::ranges::find(schedule_.items, index, &StepItem::index);
    return item == schedule_.items.end() ? 0 : item->rows;
  }

  // Plans further rows of a sequence. False when it cannot have them in this step.
  bool TakeRows(size_t index, int64_t rows) {
    if (preempted_[index]) return false;
    if (ItemOf(index) == schedule_.items.end() &&
        static_cast<int64_t>(schedule_.items.size()) == limits_.max_batch) {
      return false;
    }
    const SequenceView& sequence = sequences_[index];
    const int64_t planned = PlannedRows(index) + rows;
    const int64_t end = sequence.kv_tokens + planned;
    const int64_t blocks = (end + limits_.block_tokens - 1) / limits_.block_tokens;
    int64_t held = sequence.blocks;
    if (const auto item = ItemOf(index); item != schedule_.items.end()) held += item->new_blocks;
    const int64_t new_blocks = std::max<int64_t>(0, blocks - held);
    while (new_blocks > free_blocks_) {
      if (!PreemptFor(index)) return false;
    }
    free_blocks_ -= new_blocks;
    auto item = ItemOf(index);
    if (item == schedule_.items.end()) {
      schedule_.items.push_back({.index = index});
      item = std::prev(schedule_.items.end());
    }
    item->rows = planned;
    item->new_blocks += new_blocks;
    item->completes = planned == sequence.pending;
    return true;
  }

  // Makes the youngest sequence give up its blocks. False when `index` cannot run in this step:
  // it was the youngest itself, or only sequences that are being restored are younger.
  bool PreemptFor(size_t index) {
    bool wait = false;
    for (auto it = by_age_.rbegin(); *it != index; ++it) {
      if (preempted_[*it]) continue;
      if (sequences_[*it].restoring) {
        wait = true;
        continue;
      }
      Preempt(*it);
      return true;
    }
    // Alone, it keeps what it has: the missing block is on its way back from somewhere.
    if (!wait && index != by_age_.front()) Preempt(index);
    return false;
  }

  void Preempt(size_t index) {
    preempted_[index] = true;
    schedule_.preempt.push_back(index);
    free_blocks_ += sequences_[index].freed_blocks;
    const auto planned = ItemOf(index);
    if (planned == schedule_.items.end()) return;
    free_blocks_ += planned->new_blocks;
    schedule_.items.erase(planned);
  }

  const SchedulerLimits& limits_;
  const std::span<const SequenceView> sequences_;
  const StepCost& cost_;
  FairShare& share_;
  int64_t free_blocks_;
  std::vector<bool> preempted_;
  std::vector<size_t> by_age_;  // oldest first
  Schedule schedule_;
};

}  // namespace

Schedule PlanStep(const SchedulerLimits& limits, std::span<const SequenceView> sequences,
                  int64_t free_blocks, const StepCost& cost, FairShare& share) {
  return Planner(limits, sequences, free_blocks, cost, share).Run();
}

int64_t AdmissionReserve(int64_t running) { return running; }

}  // namespace loopserve::worker
