// Where the tiers of a test lie: memory, a directory of its own, a service of its own.
#pragma once

#include <memory>
#include <string>

#include "kvstore/server.h"
#include "kvstore/tier/registry.h"
#include "tests/support/temp_dir.h"

namespace loopserve::testing {

class TierPlace {
 public:
  explicit TierPlace(uint64_t capacity_bytes);
  ~TierPlace();

  // Options that ask for the tier of that name and for no other.
  kvstore::TierOptions OptionsFor(absl::string_view name);

  // Flips a bit in many places of every file of a disk tier.
  void DamageFiles(uint32_t seed);

 private:
  void StartService();

  const uint64_t capacity_bytes_;
  TempDir dir_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("kvstore");
  kvstore::KvMetrics kv_metrics_{*metrics_, kvstore::KvRole::kNode};
  std::unique_ptr<kvstore::SessionLog> sessions_ = kvstore::CreateMemorySessionLog();
  std::unique_ptr<kvstore::Chain> chain_;
  std::unique_ptr<kvstore::KvServer> server_;  // once the remote tier is asked for
};

}  // namespace loopserve::testing
