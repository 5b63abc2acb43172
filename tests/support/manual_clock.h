// A clock that moves only when told. Thread rule: safe from any thread.
#pragma once

#include "absl/synchronization/mutex.h"
#include "common/clock.h"

namespace loopserve::testing {

class ManualClock final : public common::Clock {
 public:
  explicit ManualClock(absl::Time now = absl::FromUnixSeconds(1'700'000'000)) : now_(now) {}
  absl::Time Now() const override {
    absl::MutexLock lock(&mutex_);
    return now_;
  }
  void Advance(absl::Duration by) {
    absl::MutexLock lock(&mutex_);
    now_ += by;
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::testing
