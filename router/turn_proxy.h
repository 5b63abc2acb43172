// TurnProxy: pipes one turn (or one completion) from a worker to a client.
//
// On the way in: decode, check ids, take the session's only place (SESSION_BUSY), wait for
// admission, choose a worker. Then it opens the worker's stream and only pipes, with one write in
// flight to the client and a bounded buffer behind it; while the buffer is full the worker is not
// read, so a slow client costs a buffer and never a thread. A client that leaves cancels the
// worker's call.
//
// Until the first token nothing has been said, so a failure may be tried elsewhere (see Routing);
// the worker's `started` is held back for that; with nobody else to try, the client gets NO_WORKER.
// Afterwards it gets WORKER_LOST and may send the same turn_id again. A turn without a turn_id gets
// one here, so that a try that did commit is replayed and not run twice.
//
// Metadata in: x-request-id, where the field is empty, and x-tenant, whose turns share a worker
// fairly with those of other tenants. Out: x-request-id, x-session-id, x-worker-id,
// x-session-affinity and, if the request had to wait, x-queue-position.
//
// Thread rule: all calls are safe from any thread; nothing blocks.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/lifecycle.h"
#include "common/log.h"
#include "router/admission.h"
#include "router/router_metrics.h"
#include "router/routing.h"
#include "router/worker_pool.h"
#include "router/worker_table.h"

namespace loopserve::router {

struct TurnProxyOptions {
  absl::Duration max_turn_time = absl::Minutes(10);
  size_t max_message_bytes = 4 << 20;
  size_t buffered_events = 64;  // that wait for a slow client before its worker does
};

// What it works with; all of it outlives the proxy.
struct TurnProxyDeps {
  Routing& routing;
  WorkerTable& table;
  WorkerPool& pool;
  Admission& admission;
  BusySessions& busy;
  common::Gate& gate;
  RouterMetrics& metrics;
  common::Logger& log;
};

class TurnProxy {
 public:
  using Stream = grpc::ServerWriteReactor<grpc::ByteBuffer>;
  using Unary = grpc::ServerUnaryReactor;

  static std::unique_ptr<TurnProxy> Create(const TurnProxyOptions& options,
                                           const TurnProxyDeps& deps);
  // Only once no call is open any more: after the gRPC server has shut down.
  virtual ~TurnProxy() = default;

  // The methods of chat.v1.Chat of the same names, on serialized messages.
  virtual Stream* Turn(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) = 0;
  virtual Unary* TurnOnce(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                          grpc::ByteBuffer* response) = 0;
  virtual Stream* Complete(grpc::CallbackServerContext* context,
                           const grpc::ByteBuffer* request) = 0;
  virtual Unary* CompleteOnce(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                              grpc::ByteBuffer* response) = 0;

  // From now on, a call that is cut off was cut off by the shutdown and not by its client.
  virtual void OnShutdown() = 0;
};

// "s-" or "r-" and 32 random hex digits.
std::string RandomId(absl::string_view prefix);

}  // namespace loopserve::router
