// Admission: who may start now, who waits, who is refused.
//
// At most `max_inflight` requests are with workers; at most `max_queue` more wait, in order of
// arrival and no longer than `max_queue_wait`; the next one is refused at once with QUEUE_FULL and
// a delay after which it is worth trying again. Refusing early costs nobody anything; a queue that
// grows without bound costs everybody their deadline.
//
// Also here: what an id from outside may look like, and which sessions have a turn in flight.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"

namespace loopserve::router {

// INVALID_FIELD naming `field` when `value` is over 256 bytes or has a control character.
inline constexpr size_t kMaxIdBytes = 256;
absl::Status CheckId(absl::string_view field, absl::string_view value);

// Whether `text` is well-formed UTF-8 (no overlong forms, no surrogates, nothing past U+10FFFF).
bool IsUtf8(absl::string_view text);

// Thread rule: all calls are safe from any thread; callbacks run on the thread of Leave or Expire,
// without a lock held.
class Admission final {
 public:
  struct Options {
    int max_inflight = 256;
    int max_queue = 1024;
    absl::Duration max_queue_wait = absl::Seconds(30);
  };
  using Ticket = uint64_t;
  // OK: start now. QUEUE_TIMEOUT: waited too long, and the ticket is void.
  using OnTurn = absl::AnyInvocable<void(absl::Status)>;

  struct Arrival {
    Ticket ticket = 0;
    int position = 0;  // 0: start now; n: the n-th to start, and `on_turn` will be called
  };

  Admission(const Options& options, const common::Clock& clock);

  // `patience`: how long this one would wait at most, by its own deadline. QUEUE_FULL, with
  // retry_after, when there is no place.
  absl::StatusOr<Arrival> Arrive(absl::Duration patience, OnTurn on_turn);
  // A ticket that started has ended, or one that waits gives up (its callback is dropped). Returns
  // the callbacks of those who start in its place: call each with OK. Unknown tickets are ignored.
  [[nodiscard]] std::vector<OnTurn> Leave(Ticket ticket);
  // Those who have waited too long: call each with QUEUE_TIMEOUT (see QueueTimeout).
  [[nodiscard]] std::vector<OnTurn> Expire();
  static absl::Status QueueTimeout();

  int inflight() const;
  int queued() const;

 private:
  struct Waiting {
    Ticket ticket;
    absl::Time until;
    OnTurn on_turn;
  };

  absl::Duration RetryAfter() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  const common::Clock& clock_;
  mutable absl::Mutex mutex_;
  Ticket last_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<Ticket, absl::Time> running_ ABSL_GUARDED_BY(mutex_);  // since when
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  double mean_seconds_ ABSL_GUARDED_BY(mutex_) = 1;  // of a request with a worker, smoothed
};

// One turn at a time per session. Thread rule: all calls are safe from any thread.
class BusySessions final {
 public:
  // SESSION_BUSY, with retry_after, when a turn of it is in flight; every OK needs one Leave.
  absl::Status Enter(const common::SessionId& id);
  void Leave(const common::SessionId& id);
  absl::flat_hash_set<common::SessionId> All() const;

 private:
  mutable absl::Mutex mutex_;
  absl::flat_hash_set<common::SessionId> busy_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::router
