// TurnLedger: which turns the engine has taken and still owes an end, and how many of them wait.
// It is the door's counter: full and closed are answered here, at once. A full queue still takes
// one turn of a tenant that has none in it, until it is twice as long as it should be, so that a
// tenant who floods it does not shut the door for others.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
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
  absl::StatusOr<TurnTicket> Enter(const std::string& tenant = "");
  // It has been admitted; only the first time counts.
  void Admitted(TurnTicket ticket);
  // Its sink has been told the end.
  void Leave(TurnTicket ticket);
  bool Contains(TurnTicket ticket) const;

  // Nobody enters any more.
  void Close();
  // False when `timeout` passed before the last turn left.
  bool AwaitEmpty(absl::Duration timeout) const;

  int64_t size() const;
  int64_t waiting() const;

 private:
  struct Turn {
    std::string tenant;
    bool waits = true;
  };
  bool HasRoom(const std::string& tenant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndWait(Turn& turn) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Empty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_.empty(); }

  const int64_t max_queue_;
  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::flat_hash_map<TurnTicket, Turn> live_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, int64_t> waiting_of_ ABSL_GUARDED_BY(mutex_);  // by tenant
};

// The answer to everybody while a worker stops.
absl::Status StoppingError();

}  // namespace loopserve::worker
