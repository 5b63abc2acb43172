// Where the tiers of a test lie: memory, a directory of its own, and whatever else a tier needs.
#pragma once

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "kvstore/tier/registry.h"
#include "tests/support/temp_dir.h"

namespace loopserve::testing {

class TierPlace {
 public:
  explicit TierPlace(uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  // Options that ask for the tier of that name and for no other.
  kvstore::TierOptions OptionsFor(absl::string_view name) {
    kvstore::TierOptions options;
    if (name == "host") options.host_bytes = capacity_bytes_;
    if (name == "disk") {
      options.disk_directory = dir_.path();
      options.disk_bytes = capacity_bytes_;
    }
    return options;
  }

  // Flips a bit in many places of every file of a disk tier.
  void DamageFiles(uint32_t seed) {
    std::mt19937 random(seed);
    for (const auto& file : std::filesystem::directory_iterator(dir_.path())) {
      if (file.path().extension() != ".kv") continue;
      std::fstream bytes(file.path(), std::ios::in | std::ios::out | std::ios::binary);
      for (int i = 0; i < 10; ++i) {
        const auto at = static_cast<std::streamoff>(16 + random() % (file.file_size() - 16));
        char byte = 0;
        bytes.seekg(at);
        bytes.get(byte);
        bytes.seekp(at);
        bytes.put(static_cast<char>(byte ^ (1 << (random() % 8))));
      }
    }
  }

 private:
  const uint64_t capacity_bytes_;
  TempDir dir_;
};

}  // namespace loopserve::testing
