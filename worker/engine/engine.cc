#include "worker/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "worker/engine/batch.h"
#include "worker/engine/engine_metrics.h"
#include "worker/engine/fair_share.h"
#include "worker/engine/inbox.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_cost.h"
#include "worker/engine/turn_io.h"
#include "worker/engine/turn_ledger.h"

namespace loopserve::worker {
namespace {

using common::MakeError;
using common::Reason;
using common::TokenId;
using kvstore::RestoreResult;

// What a client may learn of a failed step. A rank that stalls makes this worker useless for now,
// so the router may try another one.
absl::Status StepError(const absl::Status& cause) {
  const bool lost = absl::IsUnavailable(cause) || absl::IsDeadlineExceeded(cause);
  return MakeError(lost ? Reason::kWorkerLost : Reason::kInternal,
                   absl::StrCat("a step of the model failed: ", cause.message()));
}

// How the fair share sees the sequences of a queue.
void ClaimsOf(const auto& sequences, std::vector<Claimant>& claims) {
  claims.clear();
  for (const auto& sequence : sequences) {
    claims.push_back({.tenant = sequence->spec.tenant,
                      .order = sequence->ticket.value(),
                      .fixed = sequence->restoring});
  }
}

class StepLoopEngine final : public Engine {
 public:
  StepLoopEngine(const EngineOptions& options, int64_t context_tokens, RankGroup& ranks,
                 KvCache& kv, SessionCache& sessions, const common::Clock& clock,
                 common::Metrics& metrics, common::Logger& log)
      : options_(options),
        context_tokens_(context_tokens),
        limits_{.max_batch = options.max_batch,
                .max_step_tokens = options.max_step_tokens,
                .block_tokens = ranks.pool().shape().block_tokens,
                .max_step_time = options.max_step_time > absl::ZeroDuration()
                                     ? options.max_step_time
                                     : absl::InfiniteDuration(),
                .max_draft_rows = std::max<int64_t>(0, options.max_logit_rows - options.max_batch)},
        ranks_(ranks),
        kv_(kv),
        clock_(clock),
        log_(log),
        metrics_(metrics, options.model_name, context_tokens, ranks.size(),
                 {.device = kv.device_bits(), .restored = kv.restored_bits()}),
        turn_io_({.context_tokens = context_tokens,
                  .vocab = ranks.config().vocab,
                  .policy = options.policy,
                  .speculates = options.speculation.max_rows > 0 && limits_.max_draft_rows > 0},
                 sessions, kv, clock, metrics_),
        inbox_(std::make_shared<Inbox>()),
        scheduler_(limits_),
        ledger_(options.max_queue),
        io_("turn-io", options.io_threads),
        loop_(common::NamedThread("engine", [this](std::stop_token) { Loop(); })) {}

  ~StepLoopEngine() override { Stop(); }

  absl::StatusOr<TurnTicket> Submit(TurnSpec spec, std::shared_ptr<TokenSink> sink) override;
  void Cancel(TurnTicket ticket) override { inbox_->Post(Cancelled{ticket}); }
  EngineLoad load() const override;
  bool alive(absl::Duration limit) const override;
  int64_t context_tokens() const override { return context_tokens_; }
  absl::Status Drain(absl::Duration timeout) override;
  void Stop() override;

 private:
  using Owned = std::unique_ptr<Sequence>;

  // The loop.
  void Loop();
  absl::Duration IdleTime() const;
  void Handle(std::vector<Event> events);
  void On(Opened& event);
  void On(Restored& event);
  void On(Parked& event);
  void On(Cancelled& event);
  void On(Closed& event) { Forget(event.ticket); }
  void On(Wake&) {}
  void ExpireAll();
  void EndAll();
  void Publish();
  void NoticeLostKv();

  // From the queue to the batch.
  void Enqueue(Owned sequence);
  void Admit();
  bool AdmitAt(size_t index);
  bool MakeWayFor(absl::string_view tenant);
  void StartRestore(Sequence& sequence);

  // One step. True when there was something to run.
  bool Step();
  void PlanNext();
  void ChooseDrafts();
  void Preempt(Owned sequence);
  void Park(Sequence& sequence);
  void AllocateForItems();
  absl::Status RunItems();
  absl::StatusOr<StepResult> RunModel();
  void MeasurePrefill(int64_t rows, absl::Duration took);
  void Advance(const StepItem& item, std::span<const RowChoice> choices);
  std::optional<FinishReason> TakeTokens(Sequence& sequence, const StepItem& item,
                                         std::span<const RowChoice> choices);
  void OnFirstToken(Sequence& sequence);
  std::optional<FinishReason> Emit(Sequence& sequence, const RowChoice& choice);

  // The ends of a turn. After these the step loop has let go of it.
  void Close(Owned sequence, FinishReason reason);
  void Fail(Owned sequence, const absl::Status& why);
  void CancelNow(Owned sequence);
  void Forget(TurnTicket ticket);
  Owned TakeOut(TurnTicket ticket);

  const EngineOptions options_;
  const int64_t context_tokens_;
  const SchedulerLimits limits_;
  RankGroup& ranks_;
  KvCache& kv_;
  const common::Clock& clock_;
  common::Logger& log_;
  EngineMetrics metrics_;
  const TurnIo turn_io_;
  const std::shared_ptr<Inbox> inbox_;

  // The step loop's own.
  std::deque<Owned> waiting_;   // oldest first
  std::vector<Owned> running_;  // hold blocks; null while a step retires them
  absl::flat_hash_set<TurnTicket> cancelled_early_;
  uint64_t admissions_ = 0;
  bool blocked_on_blocks_ = false;
  uint64_t kv_losses_ = 0;      // of the ranks, that have been noticed
  int64_t parking_blocks_ = 0;  // that become free when turns have been parked
  std::vector<Claimant> waiting_claims_, running_claims_;  // scratch
  std::vector<SequenceView> views_;                        // scratch
  std::vector<StepItem> items_;                            // of the step at hand
  std::vector<size_t> preempt_;
  std::shared_ptr<StepPlan> plan_;  // reused, unless a rank still holds it
  Scheduler scheduler_;
  FairShare share_;
  StepCost cost_;
  double prefill_rows_ = 0;
  double prefill_seconds_ = 0;

  TurnLedger ledger_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int64_t> busy_since_ns_ = 0;  // 0: the loop waits for work
  std::atomic<int64_t> running_count_ = 0;

  absl::Mutex stop_mutex_;  // one Stop at a time
  common::ThreadPool io_;
  std::jthread loop_;  // last: it uses everything above
};

// --- The door

absl::StatusOr<TurnTicket> StepLoopEngine::Submit(TurnSpec spec, std::shared_ptr<TokenSink> sink) {
  RETURN_IF_ERROR(ValidateSampling(spec.sampling, ranks_.config().vocab));
  ASSIGN_OR_RETURN(const TurnTicket ticket, ledger_.Enter(spec.tenant));
  auto sequence = std::make_unique<Sequence>();
  sequence->ticket = ticket;
  sequence->arrival = spec.arrival == absl::InfinitePast() ? clock_.Now() : spec.arrival;
  sequence->spec = std::move(spec);
  sequence->sink = std::move(sink);
  const bool accepted = io_.Submit([this, sequence = std::move(sequence)]() mutable {
    absl::StatusOr<bool> replayed = turn_io_.Open(*sequence);
    inbox_->Post(Opened{std::move(sequence), std::move(replayed)});
  });
  if (accepted) return ticket;
  ledger_.Leave(ticket);
  return StoppingError();
}

EngineLoad StepLoopEngine::load() const {
  EngineLoad load{.running = running_count_, .waiting = ledger_.waiting()};
  load.closing = std::max<int64_t>(0, ledger_.size() - load.running - load.waiting);
  return load;
}

bool StepLoopEngine::alive(absl::Duration limit) const {
  if (ranks_.lost()) return false;
  const int64_t since = busy_since_ns_;
  return since == 0 || clock_.Now() - absl::FromUnixNanos(since) < limit;
}

absl::Status StepLoopEngine::Drain(absl::Duration timeout) {
  ledger_.Close();
  if (ledger_.AwaitEmpty(timeout)) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat(ledger_.size(), " turns still run after ", absl::FormatDuration(timeout)));
}

void StepLoopEngine::Stop() {
  absl::MutexLock one_at_a_time(&stop_mutex_);
  ledger_.Close();
  stopping_ = true;
  inbox_->Post(Wake{});
  if (loop_.joinable()) loop_.join();
  io_.Stop();
}

// --- The loop

void StepLoopEngine::Loop() {
  bool runnable = false;
  while (true) {
    if (!runnable) busy_since_ns_ = 0;
    std::vector<Event> events = inbox_->Take(runnable ? absl::ZeroDuration() : IdleTime());
    busy_since_ns_ = absl::ToUnixNanos(clock_.Now());
    Handle(std::move(events));
    if (stopping_ && ledger_.size() == 0) return;
    ExpireAll();
    NoticeLostKv();
    Admit();
    runnable = Step();
    Publish();
  }
}

// Until the next deadline of anybody. Who waits for blocks looks again soon: saves and restores let
// go of them one by one, and some only after they have told that they are over.
absl::Duration StepLoopEngine::IdleTime() const {
  absl::Time next = absl::InfiniteFuture();
  for (const Owned& sequence : waiting_) next = std::min(next, sequence->spec.deadline);
  for (const Owned& sequence : running_) next = std::min(next, sequence->spec.deadline);
  const bool stuck = std::ranges::any_of(running_, [](const Owned& s) { return !s->restoring; });
  if (stuck || blocked_on_blocks_ || parking_blocks_ > 0) return absl::Milliseconds(1);
  return std::clamp(next - clock_.Now(), absl::Milliseconds(1), ranks_.refresh_within());
}

void StepLoopEngine::Handle(std::vector<Event> events) {
  for (Event& event : events) {
    std::visit([this](auto& concrete) { On(concrete); }, event);
  }
  if (stopping_) EndAll();
}

void StepLoopEngine::On(Opened& event) {
  Owned sequence = std::move(event.sequence);
  const bool cancelled = cancelled_early_.erase(sequence->ticket) > 0;
  if (!event.replayed.ok()) return Fail(std::move(sequence), event.replayed.status());
  if (*event.replayed) return Forget(sequence->ticket);
  if (cancelled) return CancelNow(std::move(sequence));
  sequence->stops = sequence->spec.sampling.stop_token_ids;
  if (!sequence->spec.sampling.ignore_eos) {
    sequence->stops.insert(sequence->stops.end(), options_.eos_token_ids.begin(),
                           options_.eos_token_ids.end());
  }
  Enqueue(std::move(sequence));
}

void StepLoopEngine::On(Restored& event) {
  for (Owned& sequence : running_) {
    if (sequence->ticket != event.ticket || sequence->admission != event.admission) continue;
    TakeRestored(*sequence, event.result, limits_.block_tokens, clock_.Now());
  }
}

void StepLoopEngine::On(Parked& event) {
  parking_blocks_ -= event.blocks;
  for (Owned& sequence : waiting_) {
    if (sequence->ticket == event.ticket) sequence->parking = false;
  }
}

void StepLoopEngine::On(Cancelled& event) {
  if (Owned sequence = TakeOut(event.ticket)) return CancelNow(std::move(sequence));
  if (ledger_.Contains(event.ticket)) cancelled_early_.insert(event.ticket);
}

StepLoopEngine::Owned StepLoopEngine::TakeOut(TurnTicket ticket) {
  const auto is_it = [&](const Owned& sequence) { return sequence->ticket == ticket; };
  Owned found;
  if (auto it = std::ranges::find_if(waiting_, is_it); it != waiting_.end()) {
    found = std::move(*it);
    waiting_.erase(it);
  } else if (auto it = std::ranges::find_if(running_, is_it); it != running_.end()) {
    found = std::move(*it);
    running_.erase(it);
  }
  return found;
}

void StepLoopEngine::ExpireAll() {
  const absl::Time now = clock_.Now();
  std::vector<TurnTicket> late;
  for (const Owned& s : waiting_) {
    if (s->spec.deadline <= now) late.push_back(s->ticket);
  }
  for (const Owned& s : running_) {
    if (s->spec.deadline <= now) late.push_back(s->ticket);
  }
  for (TurnTicket ticket : late) {
    Fail(TakeOut(ticket), MakeError(Reason::kDeadline, "the deadline passed during the turn"));
  }
}

void StepLoopEngine::EndAll() {
  while (!waiting_.empty()) Fail(TakeOut(waiting_.front()->ticket), StoppingError());
  while (!running_.empty()) Fail(TakeOut(running_.front()->ticket), StoppingError());
}

void StepLoopEngine::Publish() {
  const int64_t restoring = std::ranges::count_if(running_, &Sequence::restoring,
                                                  [](const Owned& s) -> Sequence& { return *s; });
  const int64_t waiting = static_cast<int64_t>(waiting_.size());
  running_count_ = static_cast<int64_t>(running_.size());
  metrics_.running->Set(static_cast<double>(running_count_ - restoring));
  metrics_.waiting_restore->Set(static_cast<double>(restoring));
  metrics_.waiting_blocks->Set(blocked_on_blocks_ ? static_cast<double>(waiting) : 0);
  metrics_.waiting_slots->Set(blocked_on_blocks_ ? 0 : static_cast<double>(waiting));
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    metrics_.rank_up[static_cast<size_t>(rank)]->Set(ranks_.rank_up(rank) ? 1 : 0);
  }
}

// What lay on the device is gone. Those who held some of it begin again, with what the store has.
void StepLoopEngine::NoticeLostKv() {
  const uint64_t losses = ranks_.Refresh();
  if (losses == std::exchange(kv_losses_, losses)) return;
  kv_.device().Clear();
  for (Owned& sequence : std::exchange(running_, {})) {
    GiveUpBlocks(*sequence);
    Enqueue(std::move(sequence));
  }
}

// --- From the queue to the batch

// By age, so that a preempted sequence comes before those of its tenant that were never admitted.
void StepLoopEngine::Enqueue(Owned sequence) {
  const auto place = std::ranges::upper_bound(waiting_, sequence->ticket, {},
                                              [](const Owned& other) { return other->ticket; });
  waiting_.insert(place, std::move(sequence));
}

void StepLoopEngine::Admit() {
  blocked_on_blocks_ = false;
  while (!waiting_.empty()) {
    ClaimsOf(waiting_, waiting_claims_);
    ClaimsOf(running_, running_claims_);
    const size_t next = *NextToAdmit(waiting_claims_, running_claims_);
    if (waiting_[next]->parking) return;
    const bool full = static_cast<int64_t>(running_.size()) >= options_.max_batch;
    if (!full && AdmitAt(next)) continue;
    if (!full && parking_blocks_ > 0) return;  // more are about to come
    if (!MakeWayFor(waiting_[next]->spec.tenant)) return;
  }
}

// A turn of the tenant that holds the most steps back, if that is fairer.
bool StepLoopEngine::MakeWayFor(absl::string_view tenant) {
  const std::optional<size_t> who = WhoStepsBack(tenant, running_claims_);
  if (!who) return false;
  Owned sequence = std::move(running_[*who]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(*who));
  Preempt(std::move(sequence));
  return true;
}

// False when the blocks do not suffice: nobody overtakes the next one.
bool StepLoopEngine::AdmitAt(size_t index) {
  Sequence& sequence = *waiting_[index];
  const bool use_cache = !sequence.spec.bypass_cache;
  absl::StatusOr<std::optional<AcquiredKv>> acquired =
      kv_.Acquire(sequence.root, sequence.tokens, use_cache,
                  AdmissionReserve(static_cast<int64_t>(running_.size())));
  if (!acquired.ok()) {
    Fail(TakeOut(sequence.ticket), acquired.status());
    return true;
  }
  if (!acquired->has_value()) {
    blocked_on_blocks_ = true;
    return false;
  }
  TakeBlocks(sequence, **std::move(acquired), clock_.Now());
  sequence.admission = ++admissions_;
  ledger_.Admitted(sequence.ticket);
  running_.push_back(std::move(waiting_[index]));
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
  if (use_cache && kv_.has_store() && sequence.pending() > 1) StartRestore(sequence);
  return true;
}

void StepLoopEngine::StartRestore(Sequence& sequence) {
  const auto done = [inbox = inbox_, ticket = sequence.ticket,
                     admission = sequence.admission](RestoreResult result) {
    inbox->Post(Restored{ticket, admission, std::move(result)});
  };
  const double prefill_speed = prefill_seconds_ > 0 ? prefill_rows_ / prefill_seconds_ : 0;
  sequence.restoring =
      io_.Submit([this, done, prefill_speed, root = sequence.root, tokens = sequence.tokens,
                  blocks = sequence.blocks, device_tokens = sequence.kv_tokens]() mutable {
        kv_.Restore(root, std::move(tokens), device_tokens, std::move(blocks), prefill_speed, done);
      });
}

// --- One step

bool StepLoopEngine::Step() {
  PlanNext();
  for (const size_t index : preempt_) Preempt(std::move(running_[index]));
  AllocateForItems();
  const bool ran = !items_.empty();
  if (ran) {
    const absl::Status status = RunItems();
    for (const StepItem& item : items_) {
      if (!status.ok()) Fail(std::move(running_[item.index]), StepError(status));
    }
  }
  std::erase(running_, nullptr);
  return ran || !preempt_.empty();
}

void StepLoopEngine::PlanNext() {
  views_.clear();
  int64_t wanted = 0;  // blocks
  for (const Owned& sequence : running_) {
    views_.push_back(ViewOf(*sequence));
    const SequenceView& view = views_.back();
    const int64_t tokens = view.kv_tokens + std::max<int64_t>(1, view.pending);
    const int64_t blocks = (tokens + limits_.block_tokens - 1) / limits_.block_tokens;
    wanted += std::max<int64_t>(0, blocks - view.blocks);
  }
  ChooseDrafts();
  int64_t free = kv_.pool().free_blocks();
  // The exact numbers matter only when blocks are short.
  if (free < wanted) {
    free = kv_.available_blocks() + parking_blocks_;
    for (size_t i = 0; i < views_.size(); ++i) {
      views_[i].freed_blocks = kv_.FreedBy(running_[i]->blocks);
    }
  }
  const Schedule& schedule = scheduler_.Plan(views_, free, cost_, share_);
  items_ = schedule.items;
  preempt_ = schedule.preempt;
}

// The guesses that are worth a row each, for the sequences that decode.
void StepLoopEngine::ChooseDrafts() {
  if (options_.speculation.max_rows == 0) return;
  StepShape step;
  double tokens = 0;
  for (const SequenceView& view : views_) {
    if (view.pending != 1 || view.restoring) continue;
    step.Add(view.kv_tokens, 1);
    ++tokens;
  }
  for (size_t i = 0; i < views_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (views_[i].pending != 1 || views_[i].restoring || !sequence.guesser) continue;
    // The last token that may come needs no guess beyond it.
    const int64_t most =
        std::min(options_.speculation.max_rows, sequence.max_tokens - sequence.generated() - 1);
    sequence.guesser->Guess(sequence.tokens, static_cast<size_t>(std::max<int64_t>(0, most)));
    const auto guessed = static_cast<int64_t>(sequence.guesser->guess().size());
    views_[i].drafts = options_.speculation.adaptive
                           ? BestDraftRows(cost_, sequence.known_tokens(), sequence.guesser->rate(),
                                           guessed, step, tokens)
                           : guessed;
  }
}

// Back to the queue. Nothing of a turn that must leave no trace is kept.
void StepLoopEngine::Preempt(Owned sequence) {
  metrics_.preemptions->Increment();
  if (!sequence->spec.ephemeral) Park(*sequence);
  GiveUpBlocks(*sequence);
  Enqueue(std::move(sequence));
}

// What was computed stays on the device as long as nobody needs the room, and goes to the store, as
// at the end of a turn: it comes back from there and is not computed again.
void StepLoopEngine::Park(Sequence& sequence) {
  const auto begin = sequence.tokens.begin();
  std::vector<TokenId> tokens(begin, begin + sequence.kv_tokens);
  if (!kv_.has_store()) {
    return kv_.Keep(sequence.root, std::move(tokens), std::move(sequence.blocks), false);
  }
  const int64_t blocks = kv_.FreedBy(sequence.blocks);
  parking_blocks_ += blocks;
  sequence.parking = true;
  kv_.Keep(sequence.root, std::move(tokens), std::move(sequence.blocks), true,
           [inbox = inbox_, ticket = sequence.ticket, blocks] {
             inbox->Post(Parked{ticket, blocks});
           });
}

// Blocks can be short only while the store still holds some: who gets none waits for a step.
void StepLoopEngine::AllocateForItems() {
  std::erase_if(items_, [&](const StepItem& item) {
    for (int64_t i = 0; i < item.new_blocks; ++i) {
      std::optional<kvstore::BlockHandle> block = kv_.Allocate();
      if (!block) return true;
      running_[item.index]->blocks.push_back(*std::move(block));
    }
    return false;
  });
}

absl::StatusOr<StepResult> StepLoopEngine::RunModel() {
  // A rank that stalled keeps its plan, and what that pins, until it comes back.
  if (plan_ == nullptr || plan_.use_count() > 1) plan_ = std::make_shared<StepPlan>();
  RETURN_IF_ERROR(FillStepPlan(items_, running_, ranks_.config(), limits_.block_tokens, *plan_));
  absl::StatusOr<StepResult> result = ranks_.Run(plan_);
  if (result.ok()) {
    Clear(*plan_);
  } else {
    plan_.reset();
  }
  return result;
}

absl::Status StepLoopEngine::RunItems() {
  const absl::Time begin = clock_.Now();
  ASSIGN_OR_RETURN(const StepResult result, RunModel());
  bool prefills = false, decodes = false;
  size_t row = 0;
  StepShape shape;
  for (const StepItem& item : items_) {
    shape.Add(running_[item.index]->kv_tokens, item.rows);
    (item.rows - item.drafts > 1 || !item.completes ? prefills : decodes) = true;
    const auto wanted = static_cast<size_t>(item.completes ? 1 + item.drafts : 0);
    Advance(item, result.choices.subspan(row, wanted));
    row += wanted;
  }
  const absl::Duration took = clock_.Now() - begin;
  metrics_.Step(prefills, decodes, shape.rows, took, result.skew);
  cost_.Observe(shape, took);
  if (prefills) MeasurePrefill(shape.rows, took);
  return absl::OkStatus();
}

// A running mean over the recent past: what a restore has to beat.
void StepLoopEngine::MeasurePrefill(int64_t rows, absl::Duration took) {
  constexpr double kMemory = 0.9;
  prefill_rows_ = kMemory * prefill_rows_ + static_cast<double>(rows);
  prefill_seconds_ = kMemory * prefill_seconds_ + absl::ToDoubleSeconds(took);
}

void StepLoopEngine::Advance(const StepItem& item, std::span<const RowChoice> choices) {
  Sequence& sequence = *running_[item.index];
  sequence.kv_tokens += item.rows - item.drafts;
  if (!item.completes) return;
  if (const std::optional<FinishReason> reason = TakeTokens(sequence, item, choices)) {
    Close(std::move(running_[item.index]), *reason);
  }
}

// The step's token, and those after it whose rows turned out to be of the right tokens.
std::optional<FinishReason> StepLoopEngine::TakeTokens(Sequence& sequence, const StepItem& item,
                                                       std::span<const RowChoice> choices) {
  const absl::Time now = clock_.Now();
  std::optional<FinishReason> reason;
  int64_t right = 0;  // guesses
  while (true) {
    if (sequence.generated() == 0) {
      sequence.first_token = now;
      OnFirstToken(sequence);
    } else {
      metrics_.NextToken(now - sequence.last_token);
    }
    sequence.last_token = now;
    reason = Emit(sequence, choices[static_cast<size_t>(right)]);
    if (reason || right == item.drafts) break;
    if (sequence.tokens.back() != sequence.guesser->guess()[static_cast<size_t>(right)]) break;
    ++right;
    ++sequence.kv_tokens;  // of the guess, which has become a token
  }
  if (sequence.guesser) {
    sequence.guesser->Judge(sequence.tokens, static_cast<size_t>(right + 1));
    metrics_.Guessed(item.drafts, right);
  }
  return reason;
}

void StepLoopEngine::OnFirstToken(Sequence& sequence) {
  SettlePrompt(sequence);
  metrics_.FirstToken(sequence, !sequence.spec.bypass_cache);
  // What the store loaded or declined to load, it has counted itself.
  if (sequence.returning() && !sequence.asked_store()) {
    kv_.CountUnrestored(sequence.prompt.recomputed == 0);
  }
  if (sequence.spec.ephemeral) return;
  // From now on others may share the prompt's full blocks.
  const auto blocks = static_cast<size_t>(sequence.kv_tokens / limits_.block_tokens);
  const auto tokens = blocks * static_cast<size_t>(limits_.block_tokens);
  kv_.device().Insert(sequence.root, std::span(sequence.tokens).first(tokens),
                      std::span(sequence.blocks).first(blocks));
}

// Hands one token on. Says whether, and why, the answer ends with it.
std::optional<FinishReason> StepLoopEngine::Emit(Sequence& sequence, const RowChoice& choice) {
  const std::vector<TokenId>& stops = sequence.stops;
  const SampledToken sampled = sequence.sampler->Read(choice);
  sequence.sampler->Accept(sampled.token);
  sequence.tokens.push_back(sampled.token);
  const bool is_stop = std::ranges::find(stops, sampled.token) != stops.end();
  const bool told_to_stop = sequence.sink->OnToken(
      {.token = sampled.token, .is_stop = is_stop, .logprob = sampled.logprob, .top = sampled.top});
  if (is_stop || told_to_stop) return FinishReason::kStop;
  if (sequence.generated() >= sequence.max_tokens) return FinishReason::kLength;
  return std::nullopt;
}

// --- The ends of a turn

void StepLoopEngine::Close(Owned sequence, FinishReason reason) {
  // io_ refuses only while it stops, which it does after the loop has ended.
  io_.Submit([this, sequence = std::move(sequence), reason, inbox = inbox_]() mutable {
    const TurnTicket ticket = sequence->ticket;
    turn_io_.Close(*sequence, reason, [inbox] { inbox->Post(Wake{}); });
    sequence.reset();
    inbox->Post(Closed{ticket});
  });
}

void StepLoopEngine::Fail(Owned sequence, const absl::Status& why) {
  const Reason reason = common::InfoOf(why).reason;
  const bool aborted =
      reason == Reason::kCancelled || reason == Reason::kDeadline || reason == Reason::kDraining;
  metrics_.Finished(aborted ? "abort" : "error");
  // The rest is the client's doing.
  if (reason == Reason::kNone || reason == Reason::kInternal || reason == Reason::kWorkerLost) {
    log_.Warning("turn failed", {{"error", why.ToString()}});
  }
  sequence->blocks.clear();
  sequence->claim.Release();
  sequence->sink->OnDone(why);
  Forget(sequence->ticket);
}

void StepLoopEngine::CancelNow(Owned sequence) {
  if (sequence->spec.commit_partial && sequence->generated() > 0) {
    return Close(std::move(sequence), FinishReason::kCancelled);
  }
  Fail(std::move(sequence), MakeError(Reason::kCancelled, "the turn was cancelled"));
}

void StepLoopEngine::Forget(TurnTicket ticket) {
  cancelled_early_.erase(ticket);
  ledger_.Leave(ticket);
}

absl::StatusOr<int64_t> ContextOf(const EngineOptions& options, RankGroup& ranks) {
  const kvstore::KvBlockPool& pool = ranks.pool();
  int64_t context = ranks.config().context_tokens;
  if (options.context_tokens > 0) context = std::min(context, options.context_tokens);
  return std::min<int64_t>(context, int64_t{pool.num_blocks()} * pool.shape().block_tokens);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    const EngineOptions& options, RankGroup& ranks, KvCache& kv, SessionCache& sessions,
    const common::Clock& clock, common::Metrics& metrics, common::Logger& log) {
  if (options.max_batch < 1 || options.max_queue < 1 || options.io_threads < 1) {
    return absl::InvalidArgumentError("max-batch, max-queue and io-threads must be at least 1");
  }
  if (options.max_step_tokens <= options.max_batch) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max-step-tokens is ", options.max_step_tokens, ", but must be more than ", "max-batch (",
        options.max_batch, "), so that prompts advance in a full batch"));
  }
  if (options.speculation.max_rows < 0) {
    return absl::InvalidArgumentError("speculation needs a number of rows");
  }
  RETURN_IF_ERROR(CreatePolicy(options.policy).status());
  ASSIGN_OR_RETURN(const int64_t context, ContextOf(options, ranks));
  return std::make_unique<StepLoopEngine>(options, context, ranks, kv, sessions, clock, metrics,
                                          log);
}

}  // namespace loopserve::worker
