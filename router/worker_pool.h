// WorkerPool: the channels to the workers, and the health checks that keep the WorkerTable true.
//
// Every worker is asked GetInfo at an interval. One that appears, or has restarted, is asked for
// its sessions first (ReportSessions, a stream), and the directory learns their epochs before the
// worker gets work. A worker that cannot tell them, or has another name than the list gives
// it, gets none, and the log warns of it.
//
// Thread rule: all calls are safe from any thread. `on_change` is called from threads of gRPC and
// must not block.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "common/ids.h"
#include "common/log.h"
#include "loopserve/worker/v1/worker.grpc.pb.h"
#include "router/directory/session_directory.h"
#include "router/router_metrics.h"
#include "router/worker_table.h"

namespace loopserve::router {

// What a worker says of a session's lifetime; of one that it dates no use of: until deleted.
Lifetime LifetimeOf(const session::v1::Session& session);

class WorkerPool {
 public:
  using Stub = worker::v1::Worker::StubInterface;

  struct Options {
    absl::Duration check_interval = absl::Milliseconds(500);
    absl::Duration check_timeout = absl::Seconds(2);
    // Enough for a store of hundreds of thousands of sessions.
    absl::Duration report_timeout = absl::Minutes(2);
  };

  // Starts checking at once. The references must outlive the pool.
  static std::unique_ptr<WorkerPool> Create(const std::vector<WorkerAddress>& workers,
                                            const Options& options, WorkerTable& table,
                                            SessionDirectory& directory, RouterMetrics& metrics,
                                            common::Logger& log, std::function<void()> on_change);
  virtual ~WorkerPool() = default;

  // Of a worker of the list; nullptr for another one. Lives as long as the pool.
  virtual Stub* stub(const common::WorkerId& worker) = 0;
  // The worker's last answer to a check.
  virtual std::optional<worker::v1::GetInfoResponse> info(const common::WorkerId& worker) const = 0;
};

}  // namespace loopserve::router
