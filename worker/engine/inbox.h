// Inbox: how other threads talk to the step loop. Shared with callbacks that may outlive the
// engine (a restore that ends late), so it is held by shared_ptr.
//
// Thread rule: Post from any thread; Take from the step loop only.
#pragma once

#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/store.h"
#include "worker/engine/sequence.h"

namespace loopserve::worker {

// The turn has been opened, replayed (true), or could not be opened.
struct Opened {
  std::unique_ptr<Sequence> sequence;
  absl::StatusOr<bool> replayed;
};
struct Restored {
  TurnTicket ticket;
  uint64_t admission = 0;
  kvstore::RestoreResult result;
};
// The KV of a turn that stepped back has been saved: its blocks are free.
struct Parked {
  TurnTicket ticket;
  int64_t blocks = 0;
};
struct Cancelled {
  TurnTicket ticket;
};
// The sink has been told the end.
struct Closed {
  TurnTicket ticket;
};
// Blocks may have become free, or the engine is to stop.
struct Wake {};

using Event = std::variant<Opened, Restored, Parked, Cancelled, Closed, Wake>;

class Inbox final {
 public:
  void Post(Event event) {
    absl::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
  }
  // Everything that has arrived; waits for the first until `timeout` has passed.
  std::vector<Event> Take(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    if (timeout > absl::ZeroDuration()) {
      mutex_.AwaitWithTimeout(absl::Condition(this, &Inbox::HasEvents), timeout);
    }
    return std::exchange(events_, {});
  }

 private:
  bool HasEvents() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !events_.empty(); }

  absl::Mutex mutex_;
  std::vector<Event> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::worker
