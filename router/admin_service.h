// admin.v1.Admin: what an operator sees and does, on a port of its own.
//
// Thread rule: safe from any thread; nothing blocks.
#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "common/lifecycle.h"
#include "common/log.h"
#include "router/admission.h"
#include "router/directory/session_directory.h"
#include "router/worker_pool.h"
#include "router/worker_table.h"

namespace loopserve::router {

struct AdminServiceDeps {
  WorkerTable& table;
  WorkerPool& pool;
  SessionDirectory& directory;
  Admission& admission;
  common::Gate& gate;  // not the public services' one: the operator sees a drain through
  common::Logger& log;
  absl::Duration drain_timeout = absl::Minutes(5);  // of a worker, for a call without a deadline
};

std::unique_ptr<grpc::Service> CreateAdminService(const AdminServiceDeps& deps);

}  // namespace loopserve::router
