// Placement: which worker serves a turn.
//
// A session stays with its worker as long as that one is up and not draining: its KV is there. A
// session that is new, or whose worker is gone, goes to the worker with the highest rendezvous hash
// of (session, worker), so that nothing moves when another worker comes or goes; a worker that has
// more than its share of the load is passed over. Whoever gets a session it did not have gets it
// under a higher epoch.
//
// Pure: no state, no clock, no calls.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "router/directory/session_directory.h"
#include "router/worker_table.h"

namespace loopserve::router {

enum class PlacementReason {
  kSession,     // its own worker
  kHash,        // a new session, by hash
  kLoad,        // by hash, but the first choice was passed over for its load
  kWorkerLost,  // its worker is down
  kDrain,       // its worker is draining
  kOverload,    // its worker refused it for want of room
};
absl::string_view NameOf(PlacementReason reason);

struct Placement {
  Pin pin;  // where to go, under which epoch
  PlacementReason reason = PlacementReason::kHash;
  bool operator==(const Placement&) const = default;
};

// A worker that failed this very request and is not asked again.
struct Avoided {
  common::WorkerId worker;
  PlacementReason why = PlacementReason::kWorkerLost;
};

// `pin`: what the directory has, if anything. NO_WORKER when no worker is ready, DRAINING when the
// ones that are up all drain; both may be retried.
absl::StatusOr<Placement> PlaceSession(absl::string_view session, const std::optional<Pin>& pin,
                                       std::span<const WorkerView> workers,
                                       std::span<const Avoided> avoided);

// A worker for a call without a session: the one with the least load, ties broken by the hash of
// `key`. Errors as above.
absl::StatusOr<common::WorkerId> PlaceAnywhere(absl::string_view key,
                                               std::span<const WorkerView> workers,
                                               std::span<const Avoided> avoided);

}  // namespace loopserve::router
