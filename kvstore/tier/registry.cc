#include "kvstore/tier/registry.h"

#include <array>

#include "common/status_macros.h"

namespace loopserve::kvstore {

#define TIER(name) \
  absl::StatusOr<std::unique_ptr<Tier>> tier_##name(const TierOptions&, common::Logger&);
#include "kvstore/tier/tiers.def"
#undef TIER

std::span<const TierFactory> AllTiers() {
#define TIER(name) TierFactory{#name, &tier_##name},
  static constexpr std::array kTable = {
#include "kvstore/tier/tiers.def"
  };
#undef TIER
  return kTable;
}

absl::StatusOr<std::vector<std::unique_ptr<Tier>>> CreateTiers(const TierOptions& options,
                                                               common::Logger& log) {
  std::vector<std::unique_ptr<Tier>> tiers;
  for (const TierFactory& factory : AllTiers()) {
    ASSIGN_OR_RETURN(std::unique_ptr<Tier> tier, factory.create(options, log));
    if (tier != nullptr) tiers.push_back(std::move(tier));
  }
  return tiers;
}

}  // namespace loopserve::kvstore
