// Routing: the life of one request's choice of worker. Chooses (placement), commits the choice in
// the directory (compare-and-swap), and says after a failure whether another try makes sense.
//
//   RouteState state{.session = id, ...};
//   while (true) {
//     if (status = routing.Choose(state); !status.ok()) return status;
//     result = call state.worker() under state.ref();
//     if (result.ok()) break;
//     if (status = routing.AfterFailure(state, result); !status.ok()) return status;
//   }
//
// Only failures before the first token come here: a turn that has begun to speak is never repeated.
//
// Thread rule: Routing is safe from any thread, a RouteState belongs to one request.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/log.h"
#include "router/directory/session_directory.h"
#include "router/placement.h"
#include "router/router_metrics.h"
#include "router/worker_table.h"

namespace loopserve::router {

struct RouteState {
  common::SessionId session;  // empty: a call without a session
  std::string request_id;     // for the log; also spreads calls without a session
  std::string model;          // for the metrics
  bool create = false;        // its id was made up for this very request: nobody has it yet

  // Filled by Choose.
  Pin pin;
  Affinity affinity = Affinity::kNone;

  // The story so far.
  int attempts = 0;
  std::vector<Avoided> avoided;
  bool looked_up = false;
  std::optional<Pin> pin_before;  // what the directory had when the request came

  const common::WorkerId& worker() const { return pin.worker; }
  common::SessionRef ref() const { return {session, pin.epoch}; }
};

class Routing final {
 public:
  static constexpr int kMaxAttempts = 3;

  // While a worker's first report of its sessions is under way, a session whose owner is not known
  // waits: neither the answer "no such session" nor a move to a worker that merely knows of it must
  // come before the owner has spoken. Workers that do not answer, or whose report fails, are only
  // waited for until `learn_timeout` from now.
  Routing(SessionDirectory& directory, WorkerTable& workers, RouterMetrics& metrics,
          common::Logger& log, const common::Clock& clock, absl::Duration learn_timeout);

  // LOADING, with retry_after, while sessions that nobody is known to have may still turn up.
  absl::Status CheckLearned() const;

  // Errors: NO_WORKER, DRAINING, LOADING (all with retry_after).
  absl::Status Choose(RouteState& state);

  // `error` is what the chosen worker, or the way to it, answered. OK: Choose again. Otherwise the
  // error the client gets; never STALE_EPOCH, and never WORKER_LOST: nothing has been said yet, so
  // when nobody else can take over it is NO_WORKER, with retry_after.
  absl::Status AfterFailure(RouteState& state, const absl::Status& error);

  // For a failure after the first token, which is never retried: takes note of it, and returns what
  // the client gets; never STALE_EPOCH.
  absl::Status AfterBrokenStream(const RouteState& state, const absl::Status& error);

  // Drops the session's pin if it is still the one this request used.
  void Forget(const RouteState& state);

  // A turn of the session is over, so its ttl begins anew.
  // `served`: to its good end, so the worker owns the session now if that was not certain.
  void Used(const RouteState& state, bool served);
  // Drops the pins whose time is over or that are too many, but none of `in_use`; to be called now
  // and then.
  void TrimDirectory(const absl::flat_hash_set<common::SessionId>& in_use);

 private:
  absl::Status ChooseForSession(RouteState& state);
  bool OwnerIsKnown(const std::optional<Pin>& pin) const;
  absl::Status AfterStaleEpoch(RouteState& state, const absl::Status& error);
  absl::Status AfterNotFound(RouteState& state, const absl::Status& error);
  absl::Status Avoid(RouteState& state, PlacementReason why, const absl::Status& last_error);
  void Record(const RouteState& state, const Placement& placement);
  void CountRetry(const RouteState& state, RetryReason reason);

  SessionDirectory& directory_;
  WorkerTable& workers_;
  RouterMetrics& metrics_;
  common::Logger& log_;
  const common::Clock& clock_;
  const absl::Time learn_until_;
};

// Whether an error means that the worker is gone, and not that it answered with an error.
bool IsWorkerLost(const absl::Status& error);

}  // namespace loopserve::router
