// The router's settings; `loopserve-router --help` prints the same.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/config.h"

namespace loopserve::router {

// What one worker has room for by its own defaults, with some to spare: beyond that, requests wait
// better here, where the worker is not chosen yet.
inline constexpr int kInflightPerWorker = 64;

struct RouterConfig {
  std::string listen = "127.0.0.1:8001";
  std::string metrics_listen = "127.0.0.1:8002";
  std::string admin_listen = "127.0.0.1:8003";
  std::vector<std::string> workers;
  std::string directory = "embedded";

  int max_sessions = 500'000;
  int max_inflight = 0;  // 0: kInflightPerWorker for each worker
  int max_queue = 1024;
  absl::Duration max_queue_wait = absl::Seconds(30);
  absl::Duration max_turn_time = absl::Minutes(10);
  uint64_t max_message_bytes = 4 << 20;

  absl::Duration check_interval = absl::Milliseconds(500);
  absl::Duration learn_timeout = absl::Seconds(3);
  absl::Duration drain_settle = absl::Seconds(5);
  absl::Duration drain_timeout = absl::Seconds(30);

  bool reflection = true;
  std::string log_level = "info";
  std::string log_format = "text";

  int MaxInflight() const {
    return max_inflight > 0 ? max_inflight : kInflightPerWorker * static_cast<int>(workers.size());
  }

  void AddTo(common::FlagSet& flags) {
    flags.Add("listen", &listen, "address of the public services; port 0: any");
    flags.Add("metrics-listen", &metrics_listen, "address of /metrics");
    flags.Add("admin-listen", &admin_listen, "address of the operator's service");
    flags.Add("workers", &workers, "the workers: id=host:port,...");
    flags.Add("directory", &directory, "where sessions are pinned: embedded");
    flags.Add("max-sessions", &max_sessions,
              "sessions pinned at most; those that were used longest ago go first");
    flags.Add("max-inflight", &max_inflight, "requests with workers at most; 0: 64 per worker");
    flags.Add("max-queue", &max_queue, "requests that may wait for a place");
    flags.AddDuration("max-queue-wait", &max_queue_wait, "how long one may wait");
    flags.AddDuration("max-turn-time", &max_turn_time, "deadline of a turn that has none");
    flags.AddBytes("max-message-bytes", &max_message_bytes, "size of a request at most");
    flags.AddDuration("check-interval", &check_interval, "between two checks of a worker");
    flags.AddDuration(
        "learn-timeout", &learn_timeout,
        "after the start: how long sessions whose owner is not known wait for silent workers");
    flags.AddDuration("drain-settle", &drain_settle,
                      "at the end: how long to go on after health says not serving");
    flags.AddDuration("drain-timeout", &drain_timeout, "how long running turns may take then");
    flags.Add("reflection", &reflection, "let clients ask for the services' descriptions");
    flags.Add("log-level", &log_level, "debug, info, warning or error");
    flags.Add("log-format", &log_format, "text or json");
  }
};

}  // namespace loopserve::router
