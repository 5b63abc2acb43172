#include "worker/engine/scheduler.h"

#include <algorithm>

namespace loopserve::worker {
namespace {

class Planner {
 public:
  Planner(const SchedulerLimits& limits, std::span<const SequenceView> sequences,
          int64_t free_blocks)
      : limits_(limits),
        sequences_(sequences),
        free_blocks_(free_blocks),
        rows_left_(limits.max_step_tokens),
        preempted_(sequences.size(), false) {
    for (size_t i = 0; i < sequences.size(); ++i) by_age_.push_back(i);
    std::sort(by_age_.begin(), by_age_.end(),
              [&](size_t a, size_t b) { return sequences_[a].order < sequences_[b].order; });
  }

  Schedule Run() && {
    for (bool decoding : {true, false}) {
      for (size_t index : by_age_) {
        const SequenceView& sequence = sequences_[index];
        if (sequence.restoring || sequence.pending <= 0) continue;
        if ((sequence.pending == 1) == decoding) Take(index);
      }
    }
    return std::move(schedule_);
  }

 private:
  void Take(size_t index) {
    const SequenceView& sequence = sequences_[index];
    const int64_t rows = std::min(sequence.pending, rows_left_);
    if (preempted_[index] || rows == 0) return;
    if (static_cast<int64_t>(schedule_.items.size()) == limits_.max_batch) return;
    const int64_t end = sequence.kv_tokens + rows;
    const int64_t needed = (end + limits_.block_tokens - 1) / limits_.block_tokens;
    const int64_t new_blocks = std::max<int64_t>(0, needed - sequence.blocks);
    while (new_blocks > free_blocks_) {
      if (!PreemptFor(index)) return;
    }
    free_blocks_ -= new_blocks;
    rows_left_ -= rows;
    schedule_.items.push_back({index, rows, new_blocks, rows == sequence.pending});
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
    auto planned = std::find_if(schedule_.items.begin(), schedule_.items.end(),
                                [&](const StepItem& item) { return item.index == index; });
    if (planned == schedule_.items.end()) return;
    free_blocks_ += planned->new_blocks;
    rows_left_ += planned->rows;
    schedule_.items.erase(planned);
  }

  const SchedulerLimits& limits_;
  const std::span<const SequenceView> sequences_;
  int64_t free_blocks_;
  int64_t rows_left_;
  std::vector<bool> preempted_;
  std::vector<size_t> by_age_;  // oldest first
  Schedule schedule_;
};

}  // namespace

Schedule PlanStep(const SchedulerLimits& limits, std::span<const SequenceView> sequences,
                  int64_t free_blocks) {
  return Planner(limits, sequences, free_blocks).Run();
}

int64_t AdmissionReserve(int64_t running) { return running; }

}  // namespace loopserve::worker
