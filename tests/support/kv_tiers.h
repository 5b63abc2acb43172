// Tiers and keys for tests.
#pragma once

#include <memory>
#include <string>

#include "common/log.h"
#include "kvstore/tier/registry.h"
#include "tests/support/kv_bytes.h"

namespace loopserve::testing {

inline kvstore::PlaneKey KeyOf(uint64_t n, uint8_t plane = 0) {
  return {{common::Hash128{n * 0x9e3779b97f4a7c15u, n}}, plane};
}

inline kvstore::SharedBytes EntryOf(uint64_t n, size_t size = 1000) {
  return kvstore::Share(RandomBytes(size, static_cast<uint32_t>(n)));
}

// The tier of that name, which the options must ask for; dies when it cannot be created.
inline std::unique_ptr<kvstore::Tier> MakeTier(absl::string_view name,
                                               const kvstore::TierOptions& options) {
  for (const kvstore::TierFactory& factory : kvstore::AllTiers()) {
    if (factory.name == name) return factory.create(options, common::Logger::Null()).value();
  }
  return nullptr;
}

inline std::unique_ptr<kvstore::Tier> MakeHostTier(uint64_t bytes) {
  return MakeTier("host", {.host_bytes = bytes});
}

inline std::unique_ptr<kvstore::Tier> MakeDiskTier(const std::string& directory, uint64_t bytes,
                                                   const common::Clock* clock = nullptr) {
  return MakeTier("disk", {.disk_directory = directory, .disk_bytes = bytes, .clock = clock});
}

}  // namespace loopserve::testing
