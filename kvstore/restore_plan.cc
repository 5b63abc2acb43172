#include "kvstore/restore_plan.h"

#include <algorithm>

namespace loopserve::kvstore {

RestorePlan PlanRestore(std::span<const StoredRun> runs, const LoadSpeeds& speeds,
                        double prefill_tokens_per_second) {
  if (prefill_tokens_per_second <= 0) return {RestoreDecision::kLoad, runs.size()};
  double compute = 0;  // seconds to compute what the plan does not load
  for (const StoredRun& run : runs) {
    compute += static_cast<double>(run.tokens) / prefill_tokens_per_second;
  }
  size_t best = 0;
  double best_seconds = compute;
  double load = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const double speed = speeds[static_cast<size_t>(runs[i].place)];
    if (speed > 0) load += static_cast<double>(runs[i].bytes) / speed;
    compute -= static_cast<double>(runs[i].tokens) / prefill_tokens_per_second;
    if (load + compute > best_seconds) continue;
    best = i + 1;
    best_seconds = load + compute;
  }
  if (best == runs.size()) return {RestoreDecision::kLoad, best};
  return {best == 0 ? RestoreDecision::kRecompute : RestoreDecision::kMixed, best};
}

absl::Duration LoadAllowance(int64_t loaded_tokens, int64_t all_tokens,
                             double prefill_tokens_per_second) {
  if (prefill_tokens_per_second <= 0) return absl::InfiniteDuration();
  const double tokens = static_cast<double>(loaded_tokens) + 0.05 * static_cast<double>(all_tokens);
  return absl::Seconds(tokens / prefill_tokens_per_second);
}

SpeedMeter::Mean& SpeedMeter::MeanOf(Place place, absl::Time now) {
  Mean& mean = means_[static_cast<size_t>(place)];
  if (now - mean.last > kMemory) mean = {};
  return mean;
}

void SpeedMeter::Measured(Place place, uint64_t bytes, absl::Duration took, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  Mean& mean = MeanOf(place, now);
  const absl::Duration uncounted =
      std::max(now - std::max(now - took, mean.last), absl::ZeroDuration());
  // Older measurements fade by half with each new one; with less when others loaded in its time.
  const double kept =
      took > absl::ZeroDuration() ? 1 - absl::FDivDuration(uncounted, took) / 2 : 1.0;
  mean.bytes = mean.bytes * kept + static_cast<double>(bytes);
  mean.seconds = mean.seconds * kept + std::max(absl::ToDoubleSeconds(uncounted), 1e-9);
  mean.last = std::max(mean.last, now);
}

void SpeedMeter::Stalled(Place place, absl::Duration waited, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  Mean& mean = MeanOf(place, now);
  mean.bytes /= 2;
  mean.seconds = mean.seconds / 2 + std::max(absl::ToDoubleSeconds(waited), 1e-9);
  mean.last = std::max(mean.last, now);
}

LoadSpeeds SpeedMeter::speeds(absl::Time now) const {
  absl::MutexLock lock(&mutex_);
  LoadSpeeds speeds{};
  for (size_t i = 0; i < means_.size(); ++i) {
    if (now - means_[i].last > kMemory) continue;
    speeds[i] = std::max(means_[i].bytes / means_[i].seconds, 1.0);
  }
  return speeds;
}

}  // namespace loopserve::kvstore
