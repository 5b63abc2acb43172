#include "kvstore/kv_metrics.h"

#include <vector>

namespace loopserve::kvstore {
namespace {

using common::Labels;

constexpr absl::string_view kErrorKinds[] = {"io", "checksum", "timeout", "version"};
constexpr absl::string_view kDropReasons[] = {"backpressure", "full"};
constexpr absl::string_view kLeaveReasons[] = {"capacity", "delete"};
constexpr absl::string_view kMoves[] = {"store", "load", "prefetch", "evict"};
constexpr absl::string_view kDecisions[] = {"reuse", "load", "mixed", "recompute", "abandoned"};
constexpr absl::string_view kBlockStates[] = {"free", "active", "cached"};

struct Move {
  Place from;
  Place to;
  KvMove move;
};
constexpr Move kAllMoves[] = {
    {Place::kDevice, Place::kHost, KvMove::kStore},
    {Place::kDevice, Place::kDisk, KvMove::kStore},
    {Place::kDevice, Place::kRemote, KvMove::kStore},
    {Place::kHost, Place::kDevice, KvMove::kLoad},
    {Place::kDisk, Place::kDevice, KvMove::kLoad},
    {Place::kRemote, Place::kDevice, KvMove::kLoad},
    {Place::kDisk, Place::kHost, KvMove::kPrefetch},
    {Place::kRemote, Place::kHost, KvMove::kPrefetch},
    {Place::kHost, Place::kDisk, KvMove::kEvict},
};

std::string Text(absl::string_view text) { return std::string(text); }
Labels TierLabel(Place place) { return {{"tier", Text(NameOf(place))}}; }
Labels TierLabel(Place place, absl::string_view name, absl::string_view value) {
  return {{"tier", Text(NameOf(place))}, {Text(name), Text(value)}};
}
Labels MoveLabels(Place from, Place to, KvMove move) {
  return {{"src", Text(NameOf(from))},
          {"dst", Text(NameOf(to))},
          {"op", Text(kMoves[static_cast<size_t>(move)])}};
}

constexpr char kCapacity[] = "loopserve_kv_capacity_bytes";
constexpr char kUsed[] = "loopserve_kv_used_bytes";
constexpr char kBlocks[] = "loopserve_kv_blocks";
constexpr char kEvictions[] = "loopserve_kv_evictions_total";
constexpr char kEvictedBytes[] = "loopserve_kv_evicted_bytes_total";
constexpr char kErrors[] = "loopserve_kv_errors_total";
constexpr char kDropped[] = "loopserve_kv_store_dropped_total";
constexpr char kMovedBytes[] = "loopserve_kv_transfer_bytes_total";
constexpr char kMoveSeconds[] = "loopserve_kv_transfer_duration_seconds";
constexpr char kPlans[] = "loopserve_restore_plans_total";
constexpr char kRestoreSeconds[] = "loopserve_restore_duration_seconds";

// Help texts by name, so that the first use of a series anywhere tells the same.
absl::string_view HelpOf(absl::string_view name) {
  if (name == kCapacity) return "Size of the tier; 0 when it is not configured.";
  if (name == kUsed) return "Bytes held, by plane of the codec.";
  if (name == kBlocks) return "KV blocks: unused, held by a sequence, only kept for later.";
  if (name == kEvictions) return "Blocks that left a tier.";
  if (name == kEvictedBytes) return "Bytes of the blocks that left a tier.";
  if (name == kErrors) return "Failed reads and writes; the tokens are recomputed.";
  if (name == kDropped) return "Blocks that were not saved to a tier.";
  if (name == kMovedBytes) return "Encoded bytes moved between tiers.";
  if (name == kMoveSeconds) return "Time per moved block, codec included.";
  if (name == kPlans) return "How a returning turn got its KV.";
  return "Time per stage of a restore.";
}

common::Gauge& GaugeOf(common::Metrics& metrics, absl::string_view name, const Labels& labels) {
  return metrics.gauge(name, HelpOf(name), labels);
}

common::Histogram& HistogramOf(common::Metrics& metrics, absl::string_view name,
                               const Labels& labels) {
  return metrics.histogram(name, HelpOf(name), labels, common::buckets::Steps());
}

std::vector<Place> StoragePlaces(KvRole role) {
  if (role == KvRole::kNode) return {Place::kHost, Place::kDisk};
  return {Place::kHost, Place::kDisk, Place::kRemote};
}

}  // namespace

KvErrorKind KindOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDataLoss:
      return KvErrorKind::kChecksum;
    case absl::StatusCode::kDeadlineExceeded:
      return KvErrorKind::kTimeout;
    case absl::StatusCode::kUnimplemented:
      return KvErrorKind::kVersion;
    default:
      return KvErrorKind::kIo;
  }
}

KvMetrics::KvMetrics(common::Metrics& m, KvRole role)
    : metrics(m), role_(role), scrape_(std::make_shared<Scrape>()) {
  CreateTierSeries();
  if (role_ == KvRole::kWorker) CreateWorkerSeries();
  metrics.OnScrape([scrape = scrape_, &m, places = StoragePlaces(role)] {
    absl::MutexLock lock(&scrape->mutex);
    const UsageByPlace usage = scrape->source ? scrape->source() : UsageByPlace{};
    for (const Place place : places) {
      const Usage& u = usage[static_cast<size_t>(place)];
      GaugeOf(m, kCapacity, TierLabel(place)).Set(static_cast<double>(u.capacity_bytes));
      GaugeOf(m, kUsed, TierLabel(place, "plane", "0")).Set(static_cast<double>(u.used_bytes));
    }
  });
}

void KvMetrics::CreateTierSeries() {
  for (const Place place : StoragePlaces(role_)) {
    GaugeOf(metrics, kCapacity, TierLabel(place));
    GaugeOf(metrics, kUsed, TierLabel(place, "plane", "0"));
    for (const absl::string_view kind : kErrorKinds) {
      CounterOf(kErrors, TierLabel(place, "kind", kind));
    }
    if (place == Place::kRemote) continue;
    for (const absl::string_view reason : kLeaveReasons) {
      CounterOf(kEvictions, TierLabel(place, "reason", reason));
      CounterOf(kEvictedBytes, TierLabel(place, "reason", reason));
    }
  }
}

void KvMetrics::CreateWorkerSeries() {
  SetDeviceBlocks(0, 0, 0, 0);
  for (const absl::string_view reason : kLeaveReasons) {
    CounterOf(kEvictions, TierLabel(Place::kDevice, "reason", reason));
    CounterOf(kEvictedBytes, TierLabel(Place::kDevice, "reason", reason));
  }
  for (const Place place : StoragePlaces(role_)) {
    for (const absl::string_view reason : kDropReasons) {
      CounterOf(kDropped, TierLabel(place, "reason", reason));
    }
  }
  for (const Move& move : kAllMoves) {
    const Labels labels = MoveLabels(move.from, move.to, move.move);
    CounterOf(kMovedBytes, labels);
    HistogramOf(metrics, kMoveSeconds, labels);
  }
  for (const absl::string_view decision : kDecisions) {
    CounterOf(kPlans, {{"decision", Text(decision)}});
  }
  for (const char* stage : {"lookup", "load"}) {
    HistogramOf(metrics, kRestoreSeconds, {{"stage", stage}});
  }
}

common::Counter& KvMetrics::CounterOf(absl::string_view name, const Labels& labels) {
  return metrics.counter(name, HelpOf(name), labels);
}

void KvMetrics::CountError(Place place, KvErrorKind kind) {
  CounterOf(kErrors, TierLabel(place, "kind", kErrorKinds[static_cast<size_t>(kind)])).Increment();
}

void KvMetrics::CountDropped(Place place, KvDropReason reason) {
  if (role_ == KvRole::kNode) return;
  CounterOf(kDropped, TierLabel(place, "reason", kDropReasons[static_cast<size_t>(reason)]))
      .Increment();
}

void KvMetrics::CountLeft(Place place, KvLeaveReason reason, uint64_t entries, uint64_t bytes) {
  if (place == Place::kRemote || entries == 0) return;
  const Labels labels = TierLabel(place, "reason", kLeaveReasons[static_cast<size_t>(reason)]);
  CounterOf(kEvictions, labels).Increment(static_cast<double>(entries));
  CounterOf(kEvictedBytes, labels).Increment(static_cast<double>(bytes));
}

void KvMetrics::CountMove(Place from, Place to, KvMove move, uint64_t bytes, absl::Duration took) {
  if (role_ == KvRole::kNode) return;
  const Labels labels = MoveLabels(from, to, move);
  CounterOf(kMovedBytes, labels).Increment(static_cast<double>(bytes));
  HistogramOf(metrics, kMoveSeconds, labels).Observe(absl::ToDoubleSeconds(took));
}

void KvMetrics::CountPlan(RestoreDecision decision) {
  if (role_ == KvRole::kNode) return;
  CounterOf(kPlans, {{"decision", Text(kDecisions[static_cast<size_t>(decision)])}}).Increment();
}

void KvMetrics::ObserveLookup(absl::Duration took) {
  HistogramOf(metrics, kRestoreSeconds, {{"stage", "lookup"}}).Observe(absl::ToDoubleSeconds(took));
}

void KvMetrics::ObserveLoad(absl::Duration took) {
  HistogramOf(metrics, kRestoreSeconds, {{"stage", "load"}}).Observe(absl::ToDoubleSeconds(took));
}

void KvMetrics::SetDeviceBlocks(uint64_t free, uint64_t active, uint64_t cached,
                                uint64_t block_bytes) {
  const uint64_t counts[] = {free, active, cached};
  for (size_t i = 0; i < std::size(counts); ++i) {
    GaugeOf(metrics, kBlocks, TierLabel(Place::kDevice, "state", kBlockStates[i]))
        .Set(static_cast<double>(counts[i]));
  }
  GaugeOf(metrics, kCapacity, TierLabel(Place::kDevice))
      .Set(static_cast<double>((free + active + cached) * block_bytes));
  GaugeOf(metrics, kUsed, TierLabel(Place::kDevice, "plane", "0"))
      .Set(static_cast<double>((active + cached) * block_bytes));
}

void KvMetrics::SetUsageSource(std::function<UsageByPlace()> source) {
  absl::MutexLock lock(&scrape_->mutex);
  scrape_->source = std::move(source);
}

}  // namespace loopserve::kvstore
