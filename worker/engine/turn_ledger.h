// TurnLedger: which turns the engine has taken and still owes an end, and how many of them wait.
// It is the door's counter: full and closed are answered here, at once.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/engine/turn.h"

namespace loopserve::worker {

class TurnLedger final {
 public:
  explicit TurnLedger(int64_t max_queue) : max_queue_(max_queue) {}

  // A new turn, which waits. Tickets ascend. QUEUE_FULL or DRAINING, both with RetryInfo.
  absl::StatusOr<TurnTicket> Enter();
  // It has been admitted, for the first time.
  void Admitted();
  // Its sink has been told the end.
  void Leave(TurnTicket ticket, bool was_waiting);
  bool Contains(TurnTicket ticket) const;

  // Nobody enters any more.
  void Close();
  // False when `timeout` passed before the last turn left.
  bool AwaitEmpty(absl::Duration timeout) const;

  int64_t size() const;
  int64_t waiting() const;

 private:
  bool Empty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_.empty(); }

  const int64_t max_queue_;
  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::flat_hash_set<TurnTicket> live_ ABSL_GUARDED_BY(mutex_);
};

// The answer to everybody while a worker stops.
absl::Status StoppingError();

}  // namespace loopserve::worker
