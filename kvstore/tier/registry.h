// The tiers of tiers.def, and what they are built from.
//
// Thread rule: a const table.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/log.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

struct TierOptions {
  uint64_t host_bytes = 0;                // 0: no host tier
  std::shared_ptr<HostArena> host_arena;  // where the host tier keeps its entries; null: anywhere
  std::string disk_directory;             // empty: no disk tier
  uint64_t disk_bytes = 0;
  std::string remote_target;             // host:port of a kvstore service; empty: no remote tier
  const common::Clock* clock = nullptr;  // null: real time
};

struct TierFactory {
  absl::string_view name;
  absl::StatusOr<std::unique_ptr<Tier>> (*create)(const TierOptions& options, common::Logger& log);
};

std::span<const TierFactory> AllTiers();

// Those the options ask for, fastest first. The first error ends it.
absl::StatusOr<std::vector<std::unique_ptr<Tier>>> CreateTiers(const TierOptions& options,
                                                               common::Logger& log);

}  // namespace loopserve::kvstore
