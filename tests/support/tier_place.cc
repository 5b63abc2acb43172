#include "tests/support/tier_place.h"

#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"

namespace loopserve::testing {

TierPlace::TierPlace(uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

TierPlace::~TierPlace() = default;

void TierPlace::StartService() {
  kvstore::TierOptions options;
  options.host_bytes = capacity_bytes_;
  chain_ = kvstore::Chain::Create(kvstore::CreateTiers(options, common::Logger::Null()).value(),
                                  capacity_bytes_, kv_metrics_, common::Logger::Null());
  server_ =
      std::move(kvstore::KvServer::Create("127.0.0.1:0", *chain_, *sessions_, *metrics_)).value();
}

kvstore::TierOptions TierPlace::OptionsFor(absl::string_view name) {
  kvstore::TierOptions options;
  if (name == "host") options.host_bytes = capacity_bytes_;
  if (name == "disk") {
    options.disk_directory = dir_.path();
    options.disk_bytes = capacity_bytes_;
  }
  if (name == "remote") {
    if (server_ == nullptr) StartService();
    options.remote_target = absl::StrCat("127.0.0.1:", server_->port());
  }
  return options;
}

void TierPlace::DamageFiles(uint32_t seed) {
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

}  // namespace loopserve::testing
