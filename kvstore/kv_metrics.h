// The metrics of the KV tiers, by the names of docs/metrics.md.
#pragma once

#include "common/metrics.h"

namespace loopserve::kvstore {

// Thread rule: safe from any thread.
struct KvMetrics {
  explicit KvMetrics(common::Metrics& metrics) : metrics(metrics) {}
  common::Metrics& metrics;
};

}  // namespace loopserve::kvstore
