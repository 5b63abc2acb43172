// SessionDirectory: which worker owns a session, and under which epoch.
//
// The epoch is the fencing token of an ownership: every change of owner raises it, every call to a
// worker carries it, and a worker refuses one older than it has seen. Should two workers be given
// the same one, by two routers or by one that knows too little, the session's record decides: it
// names its owner, and the other answers STALE_EPOCH. So no two workers ever write the same
// session. All changes are compare-and-swaps on the epoch.
//
// A directory starts empty. It learns from the workers' reports (Learn), so a restarted router goes
// on with the epochs that are in force.
//
// A pin is kept as long as its session may live. By the rule of the workers' records a session with
// a ttl is gone once it has not been used for that long; without one it lives until it is deleted.
// So that memory stays bounded even then, Trim also drops the pins that were used longest ago
// beyond a number of them. Such a session is placed as an unknown one when it comes back: its
// record brings the epoch along.
//
// Thread rule: all calls are safe from any thread and none of them blocks.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace loopserve::router {

struct Pin {
  common::WorkerId worker;
  common::Epoch epoch;
  // Pinned by this router or claimed by the worker. Otherwise the worker has only said that it
  // knows of the session, and another may own it under this very epoch.
  bool certain = true;
  bool operator==(const Pin&) const = default;
};

// How long a session lives, as its record says: until `used + ttl`.
struct Lifetime {
  absl::Time used = absl::InfinitePast();
  absl::Duration ttl = absl::ZeroDuration();  // zero: until deleted
};

// One row of a worker's report.
struct SessionSighting {
  common::SessionId id;
  common::Epoch epoch;
  bool owned = false;  // claimed by the reporter, not only known to it from a shared store
  Lifetime lifetime = {};
};

// The pins that one Trim dropped.
struct TrimmedPins {
  std::vector<Pin> expired;  // the sessions' lifetimes are over
  std::vector<Pin> evicted;  // there were too many
};

struct DirectoryCounts {
  size_t sessions = 0;
  absl::flat_hash_map<common::WorkerId, size_t> by_worker;
};

class SessionDirectory {
 public:
  virtual ~SessionDirectory() = default;

  // Nothing when the session is unknown.
  virtual absl::StatusOr<std::optional<Pin>> Find(const common::SessionId& id) const = 0;

  // Replaces the pin if it still has the epoch `expected` (nothing: if the session is unknown);
  // a `desired` of nothing forgets the session. Its lifetime stays as it was. STALE_EPOCH, with the
  // epoch in force as current_epoch (0: unknown), when somebody was faster.
  virtual absl::Status CompareAndSwap(const common::SessionId& id,
                                      std::optional<common::Epoch> expected,
                                      std::optional<Pin> desired) = 0;

  // Takes in what `reporter` says of its sessions. The higher epoch wins; of equal ones, the owner
  // wins over a worker that only knows of the session, and of those that only know of it the one of
  // the highest rendezvous weight: what a lost worker owned is spread, whoever reports first. Never
  // lowers an epoch. Lifetimes are taken in as by SetLifetime.
  virtual void Learn(const common::WorkerId& reporter,
                     std::span<const SessionSighting> sightings) = 0;

  // What a worker says of a known session's lifetime; its last use only moves forward. Ignored for
  // an unknown session.
  virtual void SetLifetime(const common::SessionId& id, const Lifetime& lifetime) = 0;
  // The session has been used: its ttl counts from `now` on. Ignored for an unknown session.
  virtual void Touch(const common::SessionId& id, absl::Time now) = 0;
  // Drops the pins that are not to be kept any longer, but none of `in_use`.
  virtual TrimmedPins Trim(absl::Time now,
                           const absl::flat_hash_set<common::SessionId>& in_use) = 0;

  virtual DirectoryCounts counts() const = 0;
};

struct DirectoryOptions {
  size_t max_pins = 500'000;  // after a Trim, but for sessions in use
};

// One implementation, as directories.def lists it.
struct DirectoryKind {
  absl::string_view name;  // also the value of --directory
  absl::StatusOr<std::unique_ptr<SessionDirectory>> (*create)(const DirectoryOptions& options);
};

std::span<const DirectoryKind> AllDirectories();
// InvalidArgument with the known names when there is none of this name.
absl::StatusOr<std::unique_ptr<SessionDirectory>> CreateDirectory(
    absl::string_view name, const DirectoryOptions& options = {});

}  // namespace loopserve::router
