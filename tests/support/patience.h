// Waiting that does not rest on how quick the machine is.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace loopserve::testing {

// Whether the condition comes true: in the end, or not at all.
inline bool Becomes(absl::FunctionRef<bool()> condition) {
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

// That what takes 1.3 s ends within two. `take` says how long it took; it is tried up to three
// times, as a busy machine may be late.
inline void ExpectWithinTwoSeconds(absl::FunctionRef<absl::Duration()> take) {
  absl::Duration took = absl::InfiniteDuration();
  for (int i = 0; i < 3 && took >= absl::Seconds(2); ++i) took = std::min(took, take());
  EXPECT_LT(took, absl::Seconds(2));
}

}  // namespace loopserve::testing
