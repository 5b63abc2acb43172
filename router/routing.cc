#include "router/routing.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/error.h"
#include "common/status_macros.h"

namespace loopserve::router {
namespace {

using common::ErrorInfo;
using common::InfoOf;
using common::MakeError;
using common::Reason;

constexpr absl::Duration kRetryAfter = absl::Seconds(1);
constexpr int kMaxSwaps = 8;  // of one choice, against others that change the same session

MoveReason ToMoveReason(PlacementReason reason) {
  if (reason == PlacementReason::kDrain) return MoveReason::kDrain;
  if (reason == PlacementReason::kOverload) return MoveReason::kOverload;
  return MoveReason::kWorkerLost;
}

absl::Status NoWorker(absl::string_view message) {
  return MakeError(ErrorInfo{.reason = Reason::kNoWorker, .retry_after = kRetryAfter}, message);
}

// A worker's "not now", for a client that may have to do with it.
absl::Status NotNow(const absl::Status& error) {
  ErrorInfo info = InfoOf(error);
  if (info.retry_after) return error;
  info.retry_after = kRetryAfter;
  return MakeError(std::move(info), error.message());
}

absl::Status BeingMoved() {
  return MakeError(ErrorInfo{.reason = Reason::kSessionBusy, .retry_after = kRetryAfter},
                   "the session is being moved");
}

}  // namespace

bool IsWorkerLost(const absl::Status& error) {
  const Reason reason = InfoOf(error).reason;
  if (reason == Reason::kWorkerLost) return true;
  // Without a reason of ours the error comes from the transport. (Only calls that nobody cancelled
  // get here.)
  return reason == Reason::kNone && (error.code() == absl::StatusCode::kUnavailable ||
                                     error.code() == absl::StatusCode::kCancelled);
}

Routing::Routing(SessionDirectory& directory, WorkerTable& workers, RouterMetrics& metrics,
                 common::Logger& log, const common::Clock& clock, absl::Duration learn_timeout)
    : directory_(directory),
      workers_(workers),
      metrics_(metrics),
      log_(log),
      clock_(clock),
      learn_until_(clock.Now() + learn_timeout) {}

absl::Status Routing::Choose(RouteState& state) {
  const absl::Time start = absl::Now();
  ++state.attempts;
  absl::Status status;
  if (state.session.value().empty()) {
    absl::StatusOr<common::WorkerId> worker =
        PlaceAnywhere(state.request_id, workers_.View(), state.avoided);
    status = worker.status();
    if (worker.ok()) {
      state.pin = {*std::move(worker), common::Epoch(0)};
      metrics_.ForModel(state.model).decisions[RouteReason::kLoad].Increment();
    }
  } else {
    status = ChooseForSession(state);
  }
  metrics_.route_duration().Observe(absl::ToDoubleSeconds(absl::Now() - start));
  return status;
}

absl::Status Routing::CheckLearned() const {
  if (!workers_.AwaitsReports(/*of_silent=*/clock_.Now() < learn_until_)) return absl::OkStatus();
  return MakeError(ErrorInfo{.reason = Reason::kLoading, .retry_after = kRetryAfter},
                   "the router is still learning which worker has this session");
}

bool Routing::OwnerIsKnown(const std::optional<Pin>& pin) const {
  return pin && pin->certain && workers_.WasLearned(pin->worker);
}

absl::Status Routing::ChooseForSession(RouteState& state) {
  for (int swap = 0; swap < kMaxSwaps; ++swap) {
    // In this order: what was learned before is in the directory, and the table looked at last says
    // how its worker is by then.
    const absl::Status learned = CheckLearned();
    ASSIGN_OR_RETURN(const std::optional<Pin> pin, directory_.Find(state.session));
    if (!state.looked_up) {
      state.looked_up = true;
      state.pin_before = pin;
    }
    if (!learned.ok() && !state.create && !OwnerIsKnown(pin)) return learned;
    ASSIGN_OR_RETURN(const Placement placement,
                     PlaceSession(state.session.value(), pin, workers_.View(), state.avoided));
    if (!pin || *pin != placement.pin) {
      const auto expected = pin ? std::optional(pin->epoch) : std::nullopt;
      const absl::Status swapped =
          directory_.CompareAndSwap(state.session, expected, placement.pin);
      if (common::HasReason(swapped, Reason::kStaleEpoch)) continue;
      RETURN_IF_ERROR(swapped);
      metrics_.directory_events()[pin ? DirectoryEvent::kRepin : DirectoryEvent::kPin].Increment();
    }
    state.pin = placement.pin;
    Record(state, placement);
    if (!state.pin_before) {
      state.affinity = Affinity::kInitialize;
    } else {
      const bool same = state.pin_before->worker == state.pin.worker;
      state.affinity = same ? Affinity::kRetain : Affinity::kSwitch;
    }
    return absl::OkStatus();
  }
  return BeingMoved();
}

void Routing::Record(const RouteState& state, const Placement& placement) {
  const bool stays = placement.reason == PlacementReason::kSession;
  ModelSeries& series = metrics_.ForModel(state.model);
  series.decisions[stays ? RouteReason::kSession : RouteReason::kLoad].Increment();
  const bool moved = !stays && placement.reason != PlacementReason::kHash &&
                     placement.reason != PlacementReason::kLoad;
  if (moved) series.moves[ToMoveReason(placement.reason)].Increment();
  log_.Info("placed", {{"request_id", state.request_id},
                       {"session_id", state.session.value()},
                       {"worker", placement.pin.worker.value()},
                       {"epoch", placement.pin.epoch.value()},
                       {"reason", NameOf(placement.reason)},
                       {"attempt", state.attempts}});
}

void Routing::CountRetry(const RouteState& state, RetryReason reason) {
  if (WorkerSeries* series = metrics_.ForWorker(state.worker()); series != nullptr) {
    series->retries[reason].Increment();
  }
}

absl::Status Routing::Avoid(RouteState& state, PlacementReason why,
                            const absl::Status& last_error) {
  state.avoided.push_back({state.worker(), why});
  if (state.attempts >= kMaxAttempts) return last_error;
  // No other worker is left: say what happened, not only that nobody is there.
  const std::vector<WorkerView> views = workers_.View();
  if (!PlaceAnywhere(state.request_id, views, state.avoided).ok()) return last_error;
  return absl::OkStatus();
}

absl::Status Routing::AfterStaleEpoch(RouteState& state, const absl::Status& error) {
  metrics_.directory_events()[DirectoryEvent::kStaleEpoch].Increment();
  if (state.attempts >= kMaxAttempts) {
    return BeingMoved();
  }
  const uint64_t ours = state.pin.epoch.value();
  const uint64_t current = std::max(InfoOf(error).current_epoch.value_or(ours), ours);
  const absl::Status swapped = directory_.CompareAndSwap(
      state.session, state.pin.epoch, Pin{state.worker(), common::Epoch(current + 1)});
  // Somebody else was faster: what they wrote is what counts now.
  if (!swapped.ok() && !common::HasReason(swapped, Reason::kStaleEpoch)) return swapped;
  if (swapped.ok()) metrics_.directory_events()[DirectoryEvent::kRepin].Increment();
  CountRetry(state, RetryReason::kStaleEpoch);
  return absl::OkStatus();
}

absl::Status Routing::AfterNotFound(RouteState& state, const absl::Status& error) {
  if (!state.pin_before) {
    // Nobody is known to have it: one of the others may. To ask around is cheap, and no try.
    --state.attempts;
    if (Avoid(state, PlacementReason::kHash, error).ok()) return absl::OkStatus();
  }
  const bool asked_its_owner = !state.pin_before || state.pin_before->worker == state.worker();
  if (asked_its_owner) {
    Forget(state);
    return error;
  }
  // Its owner is away and nobody else has the session, so it must not lose its place: put the pin
  // back for when the owner returns.
  const absl::Status restored =
      directory_.CompareAndSwap(state.session, state.pin.epoch, state.pin_before);
  if (!restored.ok()) log_.Debug("pin changed meanwhile", {{"request_id", state.request_id}});
  return NoWorker("the worker that holds this session is not available");
}

absl::Status Routing::AfterFailure(RouteState& state, const absl::Status& error) {
  const Reason reason = InfoOf(error).reason;
  const bool has_session = !state.session.value().empty();
  if (IsWorkerLost(error)) {
    AfterBrokenStream(state, error).IgnoreError();
    RETURN_IF_ERROR(Avoid(state, PlacementReason::kWorkerLost,
                          NoWorker("the worker was lost before it answered, and nobody else could "
                                   "take over")));
    CountRetry(state, RetryReason::kWorkerLost);
    return absl::OkStatus();
  }
  if (reason == Reason::kDraining || reason == Reason::kLoading) {
    RETURN_IF_ERROR(Avoid(state, PlacementReason::kDrain, NotNow(error)));
    CountRetry(state, RetryReason::kDraining);
    return absl::OkStatus();
  }
  if (reason == Reason::kQueueFull && (state.create || !has_session)) {
    return Avoid(state, PlacementReason::kOverload, error);
  }
  if (reason == Reason::kStaleEpoch && has_session) return AfterStaleEpoch(state, error);
  if (reason == Reason::kSessionNotFound && has_session) return AfterNotFound(state, error);
  if (error.code() == absl::StatusCode::kInternal) {
    if (WorkerSeries* series = metrics_.ForWorker(state.worker()); series != nullptr) {
      series->errors->Increment();
    }
  }
  return error;
}

absl::Status Routing::AfterBrokenStream(const RouteState& state, const absl::Status& error) {
  const bool lost = IsWorkerLost(error);
  WorkerSeries* series = metrics_.ForWorker(state.worker());
  if (series != nullptr && (lost || error.code() == absl::StatusCode::kInternal)) {
    series->errors->Increment();
  }
  // It was claimed elsewhere meanwhile, so nothing was committed here.
  if (InfoOf(error).reason == Reason::kStaleEpoch) return BeingMoved();
  if (!lost) return error;
  workers_.OnLost(state.worker(), error.message());
  log_.Warning("worker lost", {{"request_id", state.request_id},
                               {"worker", state.worker().value()},
                               {"error", error.message()}});
  return MakeError(Reason::kWorkerLost,
                   "the worker was lost during the answer; the same turn_id may be sent again");
}

void Routing::Forget(const RouteState& state) {
  if (state.session.value().empty()) return;
  if (directory_.CompareAndSwap(state.session, state.pin.epoch, std::nullopt).ok()) {
    metrics_.directory_events()[DirectoryEvent::kForget].Increment();
  }
}

void Routing::Used(const RouteState& state, bool served) {
  if (state.session.value().empty()) return;
  if (served && !state.pin.certain) {
    const Pin owner{state.worker(), state.pin.epoch};
    const absl::Status swapped = directory_.CompareAndSwap(state.session, state.pin.epoch, owner);
    if (!swapped.ok()) log_.Debug("pin changed meanwhile", {{"request_id", state.request_id}});
  }
  directory_.Touch(state.session, clock_.Now());
}

void Routing::TrimDirectory(const absl::flat_hash_set<common::SessionId>& in_use) {
  const TrimmedPins trimmed = directory_.Trim(clock_.Now(), in_use);
  metrics_.directory_events()[DirectoryEvent::kEvict].Increment(trimmed.evicted.size());
  metrics_.directory_events()[DirectoryEvent::kExpire].Increment(trimmed.expired.size());
  for (const Pin& pin : trimmed.expired) {
    metrics_.ForModel(workers_.ModelOf(pin.worker)).moves[MoveReason::kTtl].Increment();
  }
}

}  // namespace loopserve::router
