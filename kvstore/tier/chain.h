// Chain: tiers in a row are a tier. Reads go down the row and bring what they find up into the
// first; writes go to the first at once and to the others through queues, in the background; what
// the first loses to make room is kept by the next one that takes it.
//
// Damage in one tier is no loss while another has a sound copy: reads go on to the next.
//
// Thread rule: all calls are safe from any thread and may block on I/O, Put only on the first
// tier's.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "common/log.h"
#include "kvstore/kv_metrics.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

class Chain : public Tier {
 public:
  // `tiers`: fastest first, at least one. `max_queued_bytes` bounds each tier's queue.
  static std::unique_ptr<Chain> Create(std::vector<std::unique_ptr<Tier>> tiers,
                                       uint64_t max_queued_bytes, KvMetrics& metrics,
                                       common::Logger& log);

  // The place that a Get would most likely read from; nothing when no tier has the key.
  virtual std::optional<Place> Locate(const PlaneKey& key) = 0;
  // Whether a Put would bring the entry to where it is needed: no tier has it, or one below the
  // first takes entries, lacks this one, and it is not on its way there.
  virtual bool WouldStore(const PlaneKey& key) = 0;
  // Moves the entries out of the first tier into the next one that takes them. An entry that no
  // other tier takes stays.
  virtual void Park(std::span<const PlaneKey> keys) = 0;
  // Waits until the queues are empty.
  virtual absl::Status Flush(absl::Duration timeout) = 0;
  // Of each tier of the chain; zeros for places it has not.
  virtual UsageByPlace usage_by_place() const = 0;
};

}  // namespace loopserve::kvstore
