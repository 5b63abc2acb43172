// Every setting of loopserve-worker; `--help` prints the same.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "common/config.h"
#include "kvstore/kv_shape.h"

namespace loopserve::worker {

struct WorkerConfig {
  // Address and identity.
  std::string id = "worker-0";
  std::string listen = "127.0.0.1:8101";
  std::string metrics_listen = "127.0.0.1:8102";
  // Model and compute.
  std::string model;
  std::string model_name;  // empty: what the file says
  std::string backend = "auto";
  int tp = 1;
  int pod_ranks = 0;  // of tp, in each process; 0: all
  std::string pod_listen;
  std::string join;
  int threads = 0;
  std::string pin_threads = "auto";
  int activation_bits = 16;
  absl::Duration stall_timeout = absl::Milliseconds(1250);
  // KV tiers.
  uint64_t kv_device_bytes = uint64_t{1} << 30;
  double kv_device_share = 0;
  uint64_t kv_host_bytes = uint64_t{1} << 30;
  std::string kv_disk_dir;
  uint64_t kv_disk_bytes = uint64_t{8} << 30;
  std::string kv_dtype = "bf16";
  std::string kv_codec = "auto";
  std::string kvstore;
  // Scheduling.
  int max_batch = 32;
  int max_queue = 64;
  int max_step_tokens = 512;
  absl::Duration max_step_time = absl::Milliseconds(50);
  std::string speculative_ngram = "auto";
  int max_sessions = 4096;
  absl::Duration session_ttl = absl::Hours(30 * 24);
  // Life cycle and logs.
  absl::Duration drain_settle = absl::ZeroDuration();
  absl::Duration drain_timeout = absl::Seconds(30);
  std::string log_format = "text";
  std::string log_level = "info";

  void Declare(common::FlagSet& flags);
  absl::Status Check() const;

  // Whether this process leads others.
  bool leads_pods() const { return pod_ranks > 0 && pod_ranks < tp; }
  // Whether it only holds ranks for another.
  bool follows() const { return !join.empty(); }

  // What --kv-dtype means, once checked.
  kvstore::KvDtype KvDtypeOf() const;
  // --kv-codec, or the exact one for the dtype.
  std::string StoredCodec() const { return kv_codec == "auto" ? kv_dtype : kv_codec; }

 private:
  absl::Status CheckKv() const;
  absl::Status CheckPods() const;
};

}  // namespace loopserve::worker
