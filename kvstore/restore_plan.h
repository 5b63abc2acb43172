// How a returning turn gets its KV: load it, compute it, or load the first part and compute the
// rest; and when to give a load up. The aim: a cache may never make a turn slower than having none.
//
// All of it is decided from measured speeds. Loading the blocks [0, k) takes the sum of their
// places' times; computing the rest takes its tokens over the prefill speed; the plan is the k with
// the least sum. What has not been measured yet is taken to be fast: trying it is the measurement,
// and the allowance bounds what a wrong guess costs.
//
// Thread rule: pure functions over values; SpeedMeter is safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

// Order and names are those of loopserve_restore_plans_total.
enum class RestoreDecision { kReuse, kLoad, kMixed, kRecompute, kAbandoned };

// Bytes per second of loading from each place, decoding included; 0 = not known.
using LoadSpeeds = std::array<double, kPlaces>;

// Blocks in a row that lie in one place.
struct StoredRun {
  Place place = Place::kHost;
  int64_t tokens = 0;
  uint64_t bytes = 0;
};

struct RestorePlan {
  RestoreDecision decision = RestoreDecision::kLoad;
  size_t load_runs = 0;  // the runs to load, from the first on
};

// `prefill_tokens_per_second` 0 = not known: everything is loaded.
RestorePlan PlanRestore(std::span<const StoredRun> runs, const LoadSpeeds& speeds,
                        double prefill_tokens_per_second);

// How long a load may have taken by now: the time it would have taken to compute what it has
// brought so far, and 5 % of computing all of it on top. Infinite when the speed is not known.
absl::Duration LoadAllowance(int64_t loaded_tokens, int64_t all_tokens,
                             double prefill_tokens_per_second);

// Running means of the speeds of loading, by all threads together: time in which several of them
// loaded counts once. A measurement that is old counts as not known, so that a place that was slow
// once is tried again.
class SpeedMeter {
 public:
  static constexpr absl::Duration kMemory = absl::Seconds(30);
  // What one thread loaded in the time before `now`.
  void Measured(Place place, uint64_t bytes, absl::Duration took, absl::Time now);
  // That somebody waited so long in vain, whatever others loaded meanwhile.
  void Stalled(Place place, absl::Duration waited, absl::Time now);
  LoadSpeeds speeds(absl::Time now) const;

 private:
  struct Mean {
    double bytes = 0;
    double seconds = 0;
    absl::Time last = absl::InfinitePast();
  };
  Mean& MeanOf(Place place, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::array<Mean, kPlaces> means_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::kvstore
