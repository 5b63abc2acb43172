// Writes that wait for a slow tier: bounded by bytes, in order, on one thread of its own.
//
// What waits can already be read (Find), so an entry is never out of reach between leaving one tier
// and arriving in the next. When the queue is full it refuses: a cache that is not kept costs time,
// memory without bound costs the process.
//
// Thread rule: all calls are safe from any thread. `written` runs on the queue's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

class WriteQueue final {
 public:
  // Why an entry is written: the blocks of a turn, or room made in the tier before.
  enum class Origin { kSave, kEviction };
  struct Written {
    absl::Status status;
    uint64_t bytes = 0;
    absl::Duration took;
    Origin origin = Origin::kSave;
    bool attempted = true;  // false: the tier was not accepting, so nothing was tried
  };

  // `tier` must outlive the queue.
  WriteQueue(Tier& tier, uint64_t max_bytes, std::function<void(const Written&)> written);
  // Finishes the write that runs and forgets what waits.
  ~WriteQueue();

  // False when the queue is full. True also when the key waits already.
  bool Offer(const PlaneKey& key, SharedBytes bytes, Origin origin);
  // Null when the key does not wait.
  SharedBytes Find(const PlaneKey& key) const;
  // None of the keys will be in the tier on account of this queue.
  void Cancel(std::span<const PlaneKey> keys);
  // False when `deadline` passed before everything was written.
  bool Drain(absl::Time deadline) const;

 private:
  struct Item {
    SharedBytes bytes;
    Origin origin;
  };
  void Run(std::stop_token stop);
  bool Wakes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !order_.empty(); }
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return items_.empty(); }

  Tier& tier_;
  const uint64_t max_bytes_;
  const std::function<void(const Written&)> written_;
  mutable absl::Mutex mutex_;
  // What waits, and what is being written; a cancelled key stays in order_ and is passed over.
  absl::flat_hash_map<PlaneKey, Item> items_ ABSL_GUARDED_BY(mutex_);
  std::deque<PlaneKey> order_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread thread_;
};

}  // namespace loopserve::kvstore
