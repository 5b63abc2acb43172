// RankWatch: tells a rank that has stalled from one that has much to do.
//
// Ranks do equal work between one call of their communicators and the next, so the first to arrive
// at a call is the measure for the others: a rank is *silent* once it has been missed there for
// longer than `patience`, and longer than four times what the first one needed since all were
// together (at the call before; ranks that are heard of now and then are found there later). A step
// of minutes is then as good as one of milliseconds, and a machine that is too slow for everyone
// makes everyone slow. The end of a step counts as a call. A lone rank has no measure and is never
// silent.
//
//   RankWatch watch(ranks, absl::Milliseconds(1250));
//   watch.Begin();                        // per step
//   comm = Watched(std::move(comm), watch, rank);  // tells of every call
//   watch.Arrive(rank);                   // at the end of the rank's step
//   watch.Silent(absl::Now());            // now and then, from one thread
//
// Thread rule: all calls are safe from any thread; Begin while no rank is at a step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "worker/comm/communicator.h"

namespace loopserve::worker {

class RankWatch final {
 public:
  RankWatch(int ranks, absl::Duration patience)
      : patience_(patience), calls_(static_cast<size_t>(ranks)) {}

  void Begin(absl::Time now = absl::Now());
  // The rank has come to its next call.
  void Arrive(int rank, absl::Time now = absl::Now());
  // The rank has come to so many calls, as is heard of it now and then.
  void Reached(int rank, uint64_t calls, absl::Time now = absl::Now());
  std::vector<uint64_t> calls() const;
  // The ranks that are missed for too long; usually none. Time counts as it is seen by these calls,
  // at most twice the usual distance between two: while the whole process stood still, nobody was
  // missed.
  std::vector<int> Silent(absl::Time now = absl::Now());

  // How often Silent wants to be called.
  absl::Duration tick() const { return std::max(patience_ / 20, absl::Milliseconds(1)); }

 private:
  void ArriveAt(uint64_t calls, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Mark(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const absl::Duration patience_;
  mutable absl::Mutex mutex_;
  std::vector<uint64_t> calls_ ABSL_GUARDED_BY(mutex_);  // [rank], in this step
  uint64_t lead_ ABSL_GUARDED_BY(mutex_) = 0;            // calls of the rank that is ahead
  size_t arrived_ ABSL_GUARDED_BY(mutex_) = 0;           // ranks that have come to call lead_
  absl::Time together_ ABSL_GUARDED_BY(mutex_);          // when all had come to a call before it
  absl::Duration stretch_ ABSL_GUARDED_BY(mutex_);       // from there to the first one's arrival
  absl::Duration missed_ ABSL_GUARDED_BY(mutex_);        // how long the first one has waited
  absl::Time seen_ ABSL_GUARDED_BY(mutex_);              // up to when that has been counted
  uint64_t marked_ ABSL_GUARDED_BY(mutex_) = 0;          // the lead as it was ...
  absl::Time marked_at_ ABSL_GUARDED_BY(mutex_);         // ... found at this look
};

// `comm`, telling `watch` of every call, as of its rank `index`. The watch must outlive it.
std::unique_ptr<Communicator> Watched(std::unique_ptr<Communicator> comm, RankWatch& watch,
                                      int index);

}  // namespace loopserve::worker
