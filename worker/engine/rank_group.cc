#include "worker/engine/rank_group.h"

#include <algorithm>
#include <atomic>
#include <span>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/cpus.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "worker/engine/rank_loading.h"
#include "worker/engine/rank_watch.h"

namespace loopserve::worker {
namespace {

using kvstore::KvBlockPool;

// How long the others get to notice an abort before they count as stalled too.
constexpr absl::Duration kAbortGrace = absl::Milliseconds(400);

absl::Status WithRank(int rank, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("rank ", rank, ": ", status.message()));
}

class ThreadRankGroup final : public RankGroup {
 public:
  ThreadRankGroup(std::vector<Rank> parts, std::unique_ptr<KvBlockPool> pool,
                  absl::Duration step_timeout, absl::Duration stall_timeout, common::Logger& log)
      : step_timeout_(step_timeout),
        stall_timeout_(stall_timeout),
        log_(log),
        watch_(static_cast<int>(parts.size()), stall_timeout),
        slots_(parts.size()),
        pool_(std::move(pool)) {
    for (size_t i = 0; i < parts.size(); ++i) slots_[i].parts = std::move(parts[i]);
  }

  // Before anything else.
  absl::Status Start() {
    RETURN_IF_ERROR(Connect());
    for (int i = 0; i < size(); ++i) {
      threads_.push_back(
          common::NamedThread(absl::StrCat("rank-", i), [this, i](std::stop_token) { Loop(i); }));
    }
    return absl::OkStatus();
  }

  ~ThreadRankGroup() override {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = true;
    }
    for (Slot& slot : slots_) {
      if (slot.comm) slot.comm->Abort(absl::CancelledError("the rank group is closing"));
    }
  }

  absl::StatusOr<StepResult> Run(std::shared_ptr<const StepPlan> plan) override {
    RETURN_IF_ERROR(Heal());
    watch_.Begin();
    {
      absl::MutexLock lock(&mutex_);
      for (Slot& slot : slots_) {
        slot.plan = plan;
        slot.running = true;
      }
      failure_ = absl::OkStatus();
      busy_ = size();
    }
    plan.reset();  // the ranks let go of theirs as they finish
    RETURN_IF_ERROR(Await());
    absl::Time first = absl::InfiniteFuture(), last = absl::InfinitePast();
    for (const Slot& slot : slots_) {
      first = std::min(first, slot.finished);
      last = std::max(last, slot.finished);
    }
    const StepOutput& output = slots_[0].output;
    return StepResult{.logits = output.logits, .choices = output.choices, .skew = last - first};
  }

  int size() const override { return static_cast<int>(slots_.size()); }
  const ModelConfig& config() const override { return slots_[0].parts.model->config(); }
  KvBlockPool& pool() override { return *pool_; }
  std::string backend_name() const override { return std::string(slots_[0].parts.backend->name()); }
  std::string activation_format() const override {
    return std::string(slots_[0].parts.backend->activation_format());
  }
  bool warms_up() const override { return slots_[0].parts.backend->warms_up(); }
  size_t resident_bytes() const override {
    size_t bytes = 0;
    for (const Slot& slot : slots_) bytes += slot.parts.model->resident_bytes();
    return bytes;
  }
  bool rank_up(int rank) const override { return slots_[static_cast<size_t>(rank)].up; }
  bool lost() const override {
    absl::MutexLock lock(&mutex_);
    return !lost_.ok() || (broken_ && !AllIdle() && absl::Now() - broken_at_ > step_timeout_);
  }

 private:
  // One rank. Its thread reads `parts` and `comm`, and owns the results until it has finished.
  struct Slot {
    Rank parts;
    std::unique_ptr<Communicator> comm;        // over what the backend owns: goes before it
    std::vector<AttentionSequence> sequences;  // of the step at hand: its thread's own
    std::atomic<bool> up = true;
    // Guarded by mutex_ (an element of a vector cannot say so); set = there is a step to run.
    std::shared_ptr<const StepPlan> plan;
    bool running = false;
    StepOutput output;
    absl::Time finished;
  };

  bool AllIdle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return busy_ == 0; }

  absl::Status Connect() {
    std::vector<Backend*> backends;
    for (const Slot& slot : slots_) backends.push_back(slot.parts.backend.get());
    // This thread notices first, and knows better who is missed.
    ASSIGN_OR_RETURN(auto comms, backends[0]->ConnectRanks(backends, 2 * step_timeout_));
    if (const std::string over = comms[0]->transport(); !over.empty()) {
      log_.Info("ranks joined", {{"ranks", size()}, {"over", over}});
    }
    for (size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].comm = Watched(std::move(comms[i]), watch_);
    }
    return absl::OkStatus();
  }

  // After a failed step: fresh communicators, once every rank has come back from it.
  absl::Status Heal() {
    {
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(lost_);
      if (!broken_) return absl::OkStatus();
      if (!AllIdle()) {
        return absl::UnavailableError(
            absl::StrCat("rank ", absl::StrJoin(Stalled(), ", "),
                         " has not come back from a step that was given up"));
      }
    }
    RETURN_IF_ERROR(Connect());  // no rank is at its communicator
    for (Slot& slot : slots_) slot.up = true;
    {
      absl::MutexLock lock(&mutex_);
      broken_ = false;
    }
    log_.Info("rank group rebuilt", {{"ranks", size()}});
    return absl::OkStatus();
  }

  absl::Status Await() {
    const absl::Status status = AwaitAll();
    if (!status.ok()) log_.Error("step failed", {{"error", status.ToString()}});
    return status;
  }

  absl::Status AwaitAll() {
    absl::MutexLock lock(&mutex_);
    const absl::Time end = absl::Now() + step_timeout_;
    const absl::Condition idle(this, &ThreadRankGroup::AllIdle);
    absl::Time failed = absl::InfiniteFuture();
    while (!mutex_.AwaitWithTimeout(
        idle, std::clamp(end - absl::Now(), absl::Milliseconds(1), watch_.tick()))) {
      const absl::Time now = absl::Now();
      if (!failure_.ok()) failed = std::min(failed, now);
      if (failure_.ok() ? GiveUp(now >= end)
                        : now - failed > std::min(stall_timeout_, step_timeout_))
        break;
    }
    if (failure_.ok() && AllIdle()) return absl::OkStatus();
    broken_ = true;
    broken_at_ = absl::Now();
    for (int rank : Stalled()) slots_[static_cast<size_t>(rank)].up = false;
    return failure_;
  }

  // Ends the step for those who wait for a silent rank, or for everybody when it is `late`. False
  // when all is well.
  bool GiveUp(bool late) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const std::vector<int> silent = watch_.Silent();
    if (!late && silent.empty()) return false;
    failure_ = absl::DeadlineExceededError(
        silent.empty()
            ? absl::StrCat("rank ", absl::StrJoin(Stalled(), ", "),
                           " did not finish a step within ", absl::FormatDuration(step_timeout_))
            : absl::StrCat("rank ", absl::StrJoin(silent, ", "),
                           " stalled: the others waited for longer than ",
                           absl::FormatDuration(stall_timeout_)));
    for (Slot& slot : slots_) slot.comm->Abort(failure_);
    const auto back = [this, &silent]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      const std::vector<int> away = Stalled();
      return std::includes(silent.begin(), silent.end(), away.begin(), away.end());
    };
    mutex_.AwaitWithTimeout(absl::Condition(&back), std::min(step_timeout_, kAbortGrace));
    return true;
  }

  std::vector<int> Stalled() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<int> ranks;
    for (int i = 0; i < size(); ++i) {
      if (slots_[static_cast<size_t>(i)].running) ranks.push_back(i);
    }
    return ranks;
  }

  void Loop(int rank) {
    Slot& slot = slots_[static_cast<size_t>(rank)];
    if (slot.parts.cpu >= 0) {
      const absl::Status status = common::PinThisThread(slot.parts.cpu);
      if (!status.ok()) log_.Warning("thread not pinned", {{"error", status.ToString()}});
    }
    while (true) {
      std::shared_ptr<const StepPlan> plan;
      {
        absl::MutexLock lock(&mutex_);
        const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return stop_ || slot.plan != nullptr;
        };
        mutex_.Await(absl::Condition(&ready));
        if (stop_) return;
        plan = std::exchange(slot.plan, nullptr);
      }
      const absl::StatusOr<StepOutput> output = Execute(rank, *plan);
      plan.reset();
      Finish(rank, output);
    }
  }

  absl::StatusOr<StepOutput> Execute(int rank, const StepPlan& plan) {
    Slot& slot = slots_[static_cast<size_t>(rank)];
    slot.sequences.clear();
    int64_t row = 0;
    for (const StepPlan::Part& part : plan.parts) {
      slot.sequences.push_back({.first_row = row,
                                .rows = part.rows,
                                .kv_tokens = part.kv_tokens,
                                .blocks = part.blocks,
                                .lines = part.lines,
                                .working_set = part.working_set});
      row += part.rows;
    }
    const StepBatch batch{.tokens = plan.tokens,
                          .positions = plan.positions,
                          .sequences = slot.sequences,
                          .logit_rows = plan.logit_rows,
                          .sampling = plan.sampling.view()};
    return slot.parts.model->Forward(batch, pool_->arena(rank), *slot.comm);
  }

  void Finish(int rank, const absl::StatusOr<StepOutput>& output) {
    Slot& slot = slots_[static_cast<size_t>(rank)];
    if (!output.ok()) {
      const absl::Status why = WithRank(rank, output.status());
      {
        // The first failure is the cause, noted before the others can hear of it; what they report
        // is its echo.
        absl::MutexLock lock(&mutex_);
        if (failure_.ok()) {
          failure_ = why;
          slot.up = false;
        }
      }
      slot.comm->Abort(why);
      // What was sent to the device before may still write to the step's blocks. A device that does
      // not even finish that will do nothing else either.
      if (const absl::Status drained = slot.parts.backend->Synchronize(); !drained.ok()) {
        absl::MutexLock lock(&mutex_);
        lost_ = absl::UnavailableError(absl::StrCat("the device of rank ", rank, " has failed (",
                                                    drained.message(), "): restart this worker"));
        failure_ = lost_;
      }
    }
    watch_.Arrive(rank);
    absl::MutexLock lock(&mutex_);
    if (output.ok()) slot.output = *output;
    slot.finished = absl::Now();
    slot.running = false;
    --busy_;
  }

  const absl::Duration step_timeout_;
  const absl::Duration stall_timeout_;
  common::Logger& log_;
  RankWatch watch_;
  std::vector<Slot> slots_;                  // never resized
  const std::unique_ptr<KvBlockPool> pool_;  // in memory of the slots' backends
  mutable absl::Mutex mutex_;
  int busy_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time broken_at_ ABSL_GUARDED_BY(mutex_);  // when a step was given up last
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);  // not OK: no step will ever succeed again
  std::vector<std::jthread> threads_;          // last: they use everything above
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Create(const GgufFile& file,
                                                             const RankGroupOptions& options,
                                                             common::Logger& log) {
  ASSIGN_OR_RETURN(LoadedRanks loaded, LoadRanks(file, options, log));
  return Assemble(std::move(loaded.ranks), std::move(loaded.pool), options.step_timeout, log,
                  options.stall_timeout);
}

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Assemble(std::vector<Rank> ranks,
                                                               std::unique_ptr<KvBlockPool> pool,
                                                               absl::Duration step_timeout,
                                                               common::Logger& log,
                                                               absl::Duration stall_timeout) {
  if (ranks.empty() || static_cast<int>(ranks.size()) != pool->ranks()) {
    return absl::InvalidArgumentError(absl::StrCat("the pool has arenas for ", pool->ranks(),
                                                   " ranks, there are ", ranks.size()));
  }
  auto group = std::make_unique<ThreadRankGroup>(std::move(ranks), std::move(pool), step_timeout,
                                                 stall_timeout, log);
  RETURN_IF_ERROR(group->Start());
  return group;
}

}  // namespace loopserve::worker
