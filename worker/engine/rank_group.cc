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
#include "worker/engine/rank_pods.h"
#include "worker/engine/rank_watch.h"

namespace loopserve::worker {
namespace {

using kvstore::KvBlockPool;

// How long the others get to notice an abort before they count as stalled too.
constexpr absl::Duration kAbortGrace = absl::Milliseconds(400);
// Between two attempts to connect, of which each may take long, and two looks for new pods.
constexpr absl::Duration kRetry = absl::Seconds(1);

int CountRanks(size_t here, RankPods* pods) {
  int ranks = static_cast<int>(here);
  if (pods == nullptr) return ranks;
  for (const RemoteRanks* const pod : pods->others()) ranks += pod->ranks().count;
  return ranks;
}

class ThreadRankGroup final : public FollowingRanks {
 public:
  ThreadRankGroup(std::vector<Rank> parts, std::unique_ptr<KvBlockPool> pool,
                  absl::Duration step_timeout, absl::Duration stall_timeout, common::Logger& log,
                  RankMeeting* meeting, RankPods* pods)
      : step_timeout_(step_timeout),
        stall_timeout_(stall_timeout),
        log_(log),
        meeting_(meeting),
        pods_(pods),
        local_(parts.size()),
        first_(meeting == nullptr ? 0 : meeting->here().first),
        watch_(CountRanks(parts.size(), pods), stall_timeout),
        slots_(parts.size() + (pods == nullptr ? 0 : pods->others().size())),
        pool_(std::move(pool)) {
    for (size_t i = 0; i < local_; ++i) {
      slots_[i].parts = std::move(parts[i]);
      slots_[i].ranks = {first_ + static_cast<int>(i), 1};
    }
    for (size_t i = local_; i < slots_.size(); ++i) {
      slots_[i].remote = pods->others()[i - local_];
      slots_[i].ranks = slots_[i].remote->ranks();
    }
  }

  // Before anything else.
  absl::Status Start() {
    if (pods_ != nullptr) joins_ = pods_->joins();
    const bool follows = meeting_ != nullptr && pods_ == nullptr;  // Reconnect comes first
    const absl::Status connected = follows ? absl::OkStatus() : Connect();
    // A pod that has left by now is no reason to load everything again.
    const bool may_heal =
        pods_ != nullptr && (absl::IsUnavailable(connected) || absl::IsDeadlineExceeded(connected));
    if (!connected.ok() && !may_heal) return connected;
    {
      absl::MutexLock lock(&mutex_);
      broken_ = follows || !connected.ok();
      unconnected_ = connected;
    }
    for (size_t i = 0; i < slots_.size(); ++i) {
      threads_.push_back(common::NamedThread(absl::StrCat("rank-", slots_[i].ranks.first),
                                             [this, i](std::stop_token) { Loop(slots_[i]); }));
    }
    return absl::OkStatus();
  }

  ~ThreadRankGroup() override {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = true;
    }
    Abort(absl::CancelledError("the rank group is closing"));
  }

  absl::StatusOr<StepResult> Run(std::shared_ptr<const StepPlan> plan) override {
    const uint64_t losses = kv_losses_;
    RETURN_IF_ERROR(Heal());
    if (kv_losses_ != losses) {
      return absl::UnavailableError("a pod has been replaced, and its part of the KV is gone");
    }
    watch_.Begin();
    {
      absl::MutexLock lock(&mutex_);
      for (Slot& slot : slots_) {
        slot.plan = plan;
        slot.running = true;
      }
      failure_ = absl::OkStatus();
      busy_ = slots_.size();
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

  uint64_t Refresh() override {
    Heal().IgnoreError();  // Run will tell
    return kv_losses_;
  }

  void Abort(const absl::Status& why) override {
    absl::MutexLock lock(&mutex_);
    AbortAll(why);
  }

  absl::Status Reconnect() override {
    {
      absl::MutexLock lock(&mutex_);
      broken_ = true;
      next_try_ = absl::InfinitePast();  // the leader waits for it
    }
    return Heal();
  }

  absl::StatusOr<std::vector<uint64_t>> Settle(absl::Duration patience) override {
    {
      absl::MutexLock lock(&mutex_);
      if (!mutex_.AwaitWithTimeout(absl::Condition(this, &ThreadRankGroup::AllIdle), patience)) {
        return lost_ = absl::DeadlineExceededError(absl::StrCat(
                   "rank ", absl::StrJoin(Stalled(), ", "), " has not come back within ",
                   absl::FormatDuration(patience), " from a step that was given up"));
      }
    }
    std::vector<uint64_t> calls = watch_.calls();
    watch_.Begin();  // the next step has come to none
    return calls;
  }

  int size() const override {
    int ranks = 0;
    for (const Slot& slot : slots_) ranks += slot.ranks.count;
    return ranks;
  }
  const ModelConfig& config() const override { return slots_[0].parts.model->config(); }
  KvBlockPool& pool() override { return *pool_; }
  std::string backend_name() const override { return std::string(slots_[0].parts.backend->name()); }
  std::string activation_format() const override {
    return std::string(slots_[0].parts.backend->activation_format());
  }
  bool warms_up() const override { return slots_[0].parts.backend->warms_up(); }
  size_t resident_bytes() const override {
    size_t bytes = 0;
    for (const Slot& slot : slots_) {
      bytes += slot.remote ? slot.remote->weights_bytes() : slot.parts.model->resident_bytes();
    }
    return bytes;
  }
  bool rank_up(int rank) const override {
    for (const Slot& slot : slots_) {
      if (rank < slot.ranks.first + slot.ranks.count) return slot.up;
    }
    return false;
  }
  std::vector<uint64_t> calls() const override { return watch_.calls(); }
  absl::Status whole() const override {
    if (pods_ != nullptr) RETURN_IF_ERROR(pods_->whole());
    absl::MutexLock lock(&mutex_);
    return unconnected_;
  }
  absl::Duration refresh_within() const override {
    absl::MutexLock lock(&mutex_);
    return pods_ != nullptr || !unconnected_.ok() ? kRetry : absl::InfiniteDuration();
  }
  bool lost() const override {
    absl::MutexLock lock(&mutex_);
    return !lost_.ok() || (broken_ && !AllIdle() && absl::Now() - broken_at_ > step_timeout_);
  }

 private:
  // One rank of this process, or all of another. Its thread reads `parts`, `comm` and `remote`, and
  // owns the results until it has finished.
  struct Slot {
    RankRange ranks;
    RemoteRanks* remote = nullptr;  // null: a rank of this process
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
    for (size_t i = 0; i < local_; ++i) backends.push_back(slots_[i].parts.backend.get());
    std::shared_ptr<RankExchange> exchange;
    if (meeting_ != nullptr) {
      ASSIGN_OR_RETURN(exchange, meeting_->Meet(joins_));
    }
    // This thread notices first, and knows better who is missed.
    ASSIGN_OR_RETURN(auto comms, backends[0]->ConnectRanks(backends, 2 * step_timeout_, exchange));
    if (const std::string over = comms[0]->transport(); !over.empty()) {
      log_.Info("ranks joined", {{"ranks", comms[0]->size()}, {"over", over}});
    }
    for (size_t i = 0; i < local_; ++i) {
      comms[i] = Watched(std::move(comms[i]), watch_, static_cast<int>(i));
    }
    {
      absl::MutexLock lock(&mutex_);  // others abort them
      for (size_t i = 0; i < local_; ++i) slots_[i].comm.swap(comms[i]);
    }
    return absl::OkStatus();  // the old ones go
  }

  void AbortAll(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (Slot& slot : slots_) {
      if (slot.comm != nullptr) slot.comm->Abort(why);
      if (slot.remote != nullptr) slot.remote->Abort(why);
    }
  }

  // After a failed step, or when a pod has been replaced: fresh communicators, once every rank has
  // come back.
  absl::Status Heal() {
    uint64_t joins = 0;
    if (pods_ != nullptr) {
      RETURN_IF_ERROR(pods_->whole());
      joins = pods_->joins();
    }
    {
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(lost_);
      if (!broken_ && joins == joins_) return absl::OkStatus();
      broken_ = true;
      if (joins == joins_ && !unconnected_.ok() && absl::Now() < next_try_) return unconnected_;
      if (!AllIdle()) {
        return absl::UnavailableError(
            absl::StrCat("rank ", absl::StrJoin(Stalled(), ", "),
                         " has not come back from a step that was given up"));
      }
    }
    if (joins != std::exchange(joins_, joins)) {
      pool_->VoidBlocks();  // before any copy can reach the new pod
      ++kv_losses_;
    }
    const absl::Status connected = Connect();  // no rank is at its communicator
    {
      absl::MutexLock lock(&mutex_);
      broken_ = !connected.ok();
      unconnected_ = connected;
      next_try_ = absl::Now() + kRetry;
    }
    RETURN_IF_ERROR(connected);
    for (Slot& slot : slots_) slot.up = true;
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
      HearOfOthers();
      const absl::Time now = absl::Now();
      if (!failure_.ok()) failed = std::min(failed, now);
      if (failure_.ok() ? GiveUp(now >= end)
                        : now - failed > std::min(stall_timeout_, step_timeout_))
        break;
    }
    if (failure_.ok() && AllIdle()) return absl::OkStatus();
    broken_ = true;
    broken_at_ = absl::Now();
    for (Slot& slot : slots_) {
      if (slot.running) slot.up = false;
    }
    return failure_;
  }

  void HearOfOthers() {
    for (size_t i = local_; i < slots_.size(); ++i) Heard(slots_[i], slots_[i].remote->calls());
  }
  void Heard(const Slot& slot, std::span<const uint64_t> calls) {
    for (size_t r = 0; r < calls.size(); ++r) {
      watch_.Reached(slot.ranks.first - first_ + static_cast<int>(r), calls[r]);
    }
  }

  // Ends the step for those who wait for a silent rank, or for everybody when it is `late`. False
  // when all is well.
  bool GiveUp(bool late) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<int> silent = watch_.Silent();
    for (int& rank : silent) rank += first_;
    if (!late && silent.empty()) return false;
    failure_ = absl::DeadlineExceededError(
        silent.empty()
            ? absl::StrCat("rank ", absl::StrJoin(Stalled(), ", "),
                           " did not finish a step within ", absl::FormatDuration(step_timeout_))
            : absl::StrCat("rank ", absl::StrJoin(silent, ", "),
                           " stalled: the others waited for longer than ",
                           absl::FormatDuration(stall_timeout_)));
    AbortAll(failure_);
    const auto back = [this, &silent]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      const std::vector<int> away = Stalled();
      return std::includes(silent.begin(), silent.end(), away.begin(), away.end());
    };
    mutex_.AwaitWithTimeout(absl::Condition(&back), std::min(step_timeout_, kAbortGrace));
    return true;
  }

  std::vector<int> Stalled() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<int> ranks;
    for (const Slot& slot : slots_) {
      for (int r = 0; slot.running && r < slot.ranks.count; ++r) {
        ranks.push_back(slot.ranks.first + r);
      }
    }
    return ranks;
  }

  void Loop(Slot& slot) {
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
      const absl::StatusOr<StepOutput> output =
          slot.remote != nullptr ? ExecuteThere(slot, *plan) : Execute(slot, *plan);
      plan.reset();
      Finish(slot, output);
    }
  }

  // What comes of a step is the first rank's, which is here.
  absl::StatusOr<StepOutput> ExecuteThere(Slot& slot, const StepPlan& plan) {
    ASSIGN_OR_RETURN(const std::vector<uint64_t> calls, slot.remote->Execute(plan));
    Heard(slot, calls);
    return StepOutput{};
  }

  absl::StatusOr<StepOutput> Execute(Slot& slot, const StepPlan& plan) {
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
    return slot.parts.model->Forward(batch, pool_->arena(slot.ranks.first - first_), *slot.comm);
  }

  void Finish(Slot& slot, const absl::StatusOr<StepOutput>& output) {
    if (!output.ok()) Fail(slot, output.status());
    if (slot.remote == nullptr) watch_.Arrive(slot.ranks.first - first_);
    absl::MutexLock lock(&mutex_);
    if (output.ok()) slot.output = *output;
    slot.finished = absl::Now();
    slot.running = false;
    --busy_;
  }

  void Fail(Slot& slot, const absl::Status& status) {
    const absl::Status why = WithNames(slot.ranks, status);
    {
      // The first failure is the cause, noted before the others can hear of it; what they report is
      // its echo.
      absl::MutexLock lock(&mutex_);
      if (failure_.ok()) {
        failure_ = why;
        slot.up = false;
      }
      if (slot.remote != nullptr && absl::IsUnavailable(status)) slot.up = false;
      AbortAll(why);
    }
    if (slot.remote != nullptr) return;
    // What was sent to the device before may still write to the step's blocks. A device that does
    // not even finish that will do nothing else either.
    if (const absl::Status drained = slot.parts.backend->Synchronize(); !drained.ok()) {
      absl::MutexLock lock(&mutex_);
      lost_ = absl::UnavailableError(absl::StrCat("the device of ", NamesOf(slot.ranks),
                                                  " has failed (", drained.message(),
                                                  "): restart this worker"));
      failure_ = lost_;
    }
  }

  const absl::Duration step_timeout_;
  const absl::Duration stall_timeout_;
  common::Logger& log_;
  RankMeeting* const meeting_;               // null: all ranks are here
  RankPods* const pods_;                     // the same, if this process leads; else null
  const size_t local_;                       // slots of ranks here, the first ones
  const int first_;                          // of the ranks here
  RankWatch watch_;                          // by rank, from first_ on
  uint64_t joins_ = 0;                       // of pods, when the group was connected last
  uint64_t kv_losses_ = 0;                   // these two belong to the caller of Run
  std::vector<Slot> slots_;                  // never resized
  const std::unique_ptr<KvBlockPool> pool_;  // in memory of the slots' backends
  mutable absl::Mutex mutex_;
  size_t busy_ ABSL_GUARDED_BY(mutex_) = 0;  // slots
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time broken_at_ ABSL_GUARDED_BY(mutex_);      // when a step was given up last
  absl::Status unconnected_ ABSL_GUARDED_BY(mutex_);  // why the last attempt to connect failed
  absl::Time next_try_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);  // not OK: no step will ever succeed again
  std::vector<std::jthread> threads_;          // last: they use everything above
};

absl::StatusOr<std::unique_ptr<ThreadRankGroup>> Started(std::vector<RankGroup::Rank> ranks,
                                                         std::unique_ptr<KvBlockPool> pool,
                                                         absl::Duration step_timeout,
                                                         absl::Duration stall_timeout,
                                                         common::Logger& log, RankMeeting* meeting,
                                                         RankPods* pods) {
  const size_t holders = ranks.size() + (pods == nullptr ? 0 : pods->others().size());
  if (ranks.empty() || static_cast<int>(holders) != pool->ranks()) {
    return absl::InvalidArgumentError(absl::StrCat("the pool has arenas for ", pool->ranks(),
                                                   " ranks or pods, there are ", holders));
  }
  auto group = std::make_unique<ThreadRankGroup>(std::move(ranks), std::move(pool), step_timeout,
                                                 stall_timeout, log, meeting, pods);
  RETURN_IF_ERROR(group->Start());
  return group;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Create(const GgufFile& file,
                                                             const RankGroupOptions& options,
                                                             common::Logger& log, RankPods* pods) {
  ASSIGN_OR_RETURN(LoadedRanks loaded, LoadRanks(file, options, log, pods));
  return Assemble(std::move(loaded.ranks), std::move(loaded.pool), options.step_timeout, log,
                  options.stall_timeout, pods);
}

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Assemble(
    std::vector<Rank> ranks, std::unique_ptr<KvBlockPool> pool, absl::Duration step_timeout,
    common::Logger& log, absl::Duration stall_timeout, RankPods* pods) {
  return Started(std::move(ranks), std::move(pool), step_timeout, stall_timeout, log, pods, pods);
}

absl::StatusOr<std::unique_ptr<FollowingRanks>> FollowingRanks::Assemble(
    std::vector<Rank> ranks, std::unique_ptr<KvBlockPool> pool, absl::Duration step_timeout,
    common::Logger& log, absl::Duration stall_timeout, RankMeeting& meeting) {
  return Started(std::move(ranks), std::move(pool), step_timeout, stall_timeout, log, &meeting,
                 nullptr);
}

}  // namespace loopserve::worker
