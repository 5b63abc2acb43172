// Every setting of loopserve-kvstore; `--help` prints the same.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "common/config.h"

namespace loopserve::kvstore {

struct KvStoreConfig {
  std::string listen = "127.0.0.1:8201";
  std::string metrics_listen = "127.0.0.1:8202";
  std::string dir;
  uint64_t host_bytes = uint64_t{512} << 20;
  uint64_t disk_bytes = uint64_t{8} << 30;
  absl::Duration drain_settle = absl::ZeroDuration();
  absl::Duration drain_timeout = absl::Seconds(10);
  std::string log_format = "text";
  std::string log_level = "info";

  void Declare(common::FlagSet& flags);
  absl::Status Check() const;
};

}  // namespace loopserve::kvstore
