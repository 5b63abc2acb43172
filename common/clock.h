// Clock: injected time, so that leases, deadlines and evictions are tested without waiting.
// Thread rule: all calls are safe from any thread.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace loopserve::common {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

class RealClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

}  // namespace loopserve::common
