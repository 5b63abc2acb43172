// session.v1.Sessions: every call goes to the worker that has the session, under its epoch; the
// directory follows what happened. A fork stays with its parent's worker, where the shared blocks
// are. ListSessions merges the reports of all workers.
//
// Thread rule: safe from any thread; nothing blocks.
#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "absl/time/time.h"
#include "common/lifecycle.h"
#include "router/directory/session_directory.h"
#include "router/worker_rpc.h"
#include "router/worker_table.h"

namespace loopserve::router {

struct SessionServiceDeps {
  WorkerCallDeps worker;
  WorkerTable& table;
  SessionDirectory& directory;
  common::Gate& gate;
  size_t max_message_bytes;
  absl::Duration call_timeout = absl::Seconds(60);  // of a call without a deadline
};

std::unique_ptr<grpc::Service> CreateSessionService(const SessionServiceDeps& deps);

}  // namespace loopserve::router
