// Stopping in order: StopStack runs what was pushed, last first; Gate counts work in flight and
// lets a stop wait for it; StopSignal turns SIGTERM and SIGINT into a wait.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace loopserve::common {

// Thread rule: one thread.
class StopStack {
 public:
  ~StopStack() { StopAll(); }
  void Push(std::function<void()> stop) { stops_.push_back(std::move(stop)); }
  void StopAll() {
    while (!stops_.empty()) {
      std::function<void()> stop = std::move(stops_.back());
      stops_.pop_back();
      stop();
    }
  }

 private:
  std::vector<std::function<void()>> stops_;
};

// Thread rule: all calls are safe from any thread.
class Gate {
 public:
  // False once closed; every true needs one Leave.
  bool Enter() {
    absl::MutexLock lock(&mutex_);
    if (closed_) return false;
    ++inside_;
    return true;
  }
  void Leave() {
    absl::MutexLock lock(&mutex_);
    --inside_;
  }
  // Refuses newcomers and waits for those inside; false when `timeout` passed first.
  bool Close(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    return mutex_.AwaitWithTimeout(absl::Condition(this, &Gate::Empty), timeout);
  }
  int inside() const {
    absl::MutexLock lock(&mutex_);
    return inside_;
  }

 private:
  bool Empty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return inside_ == 0; }
  mutable absl::Mutex mutex_;
  int inside_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// Blocks SIGTERM, SIGINT and ignores SIGPIPE for the whole process; call first in main, before any
// thread exists.
void BlockStopSignals();
// Whether a stop signal has come that nobody has waited for yet: for what takes long before anybody
// does.
bool StopRequested();
// Returns the number of the first stop signal; afterwards a second one ends the process at once
// with exit code 128 + n.
int WaitForStopSignal();

}  // namespace loopserve::common
