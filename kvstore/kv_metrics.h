// The metrics of the KV tiers, by the names of docs/metrics.md. Every series exists at 0 from the
// start.
//
// Thread rule: safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "kvstore/restore_plan.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

enum class KvRole { kWorker, kNode };  // which table of docs/metrics.md
enum class KvErrorKind { kIo, kChecksum, kTimeout, kVersion };
enum class KvDropReason { kBackpressure, kFull };
enum class KvLeaveReason { kCapacity, kDelete };
enum class KvMove { kStore, kLoad, kPrefetch, kEvict };

using UsageByPlace = std::array<Usage, kPlaces>;

// What went wrong, from the status of a failed read or write.
KvErrorKind KindOf(const absl::Status& status);

class KvMetrics {
 public:
  explicit KvMetrics(common::Metrics& metrics, KvRole role = KvRole::kWorker);
  common::Metrics& metrics;

  void CountError(Place place, KvErrorKind kind);
  void CountDropped(Place place, KvDropReason reason);
  void CountLeft(Place place, KvLeaveReason reason, uint64_t entries, uint64_t bytes);
  void CountMove(Place from, Place to, KvMove move, uint64_t bytes, absl::Duration took);
  void CountPlan(RestoreDecision decision);
  void ObserveLookup(absl::Duration took);
  void ObserveLoad(absl::Duration took);

  // The device's part of the gauges; the KV cache over the block pool sets it.
  void SetDeviceBlocks(uint64_t free, uint64_t active, uint64_t cached, uint64_t block_bytes);
  // Asked at every scrape for host, disk and remote, until it is replaced; null: nobody is.
  void SetUsageSource(std::function<UsageByPlace()> source);

 private:
  // Shared with the scrape callback, which may outlive this object.
  struct Scrape {
    absl::Mutex mutex;
    std::function<UsageByPlace()> source ABSL_GUARDED_BY(mutex);
  };
  void CreateTierSeries();
  void CreateWorkerSeries();
  common::Counter& CounterOf(absl::string_view name, const common::Labels& labels);

  const KvRole role_;
  std::shared_ptr<Scrape> scrape_;
};

}  // namespace loopserve::kvstore
