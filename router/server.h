// RouterServer: the router's parts wired together, behind two gRPC ports: the public services
// (Chat, Sessions, health) and the operator's (Admin, health).
//
// Health: "" and the names of the public services say SERVING while a worker is ready and the
// router does not drain.
//
// Thread rule: one thread creates, drains and destroys it.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "router/config.h"
#include "router/directory/session_directory.h"
#include "router/worker_table.h"

namespace loopserve::router {

class RouterServer {
 public:
  // Serves when it returns; Unavailable, with the way out, when an address is taken. The references
  // must outlive it.
  static absl::StatusOr<std::unique_ptr<RouterServer>> Create(const RouterConfig& config,
                                                              common::Metrics& metrics,
                                                              common::Logger& log,
                                                              const common::Clock& clock);
  virtual ~RouterServer() = default;

  virtual int port() const = 0;
  virtual int admin_port() const = 0;
  virtual const WorkerTable& workers() const = 0;
  virtual const SessionDirectory& directory() const = 0;

  // Says NOT_SERVING, goes on for drain_settle, then refuses with DRAINING, waits up to
  // drain_timeout for what runs, and ends the rest. Blocks; idempotent.
  virtual void Drain() = 0;
};

}  // namespace loopserve::router
