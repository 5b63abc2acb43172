// One ReportSessions call: a worker's sessions, message by message.
//
//   ReadSessionReports(stub, &context, {}, on_rows, on_end);
//
// Thread rule: the callbacks run on threads of gRPC, never two at once.
#pragma once

#include <grpcpp/client_context.h>

#include <functional>

#include "loopserve/worker/v1/worker.grpc.pb.h"

namespace loopserve::router {

// `on_rows` gets each message, then `on_end`, once, the end of the call. `context` lives until
// then.
void ReadSessionReports(worker::v1::Worker::StubInterface& stub, grpc::ClientContext* context,
                        const worker::v1::ReportSessionsRequest& request,
                        std::function<void(const worker::v1::ReportSessionsResponse&)> on_rows,
                        std::function<void(const grpc::Status&)> on_end);

}  // namespace loopserve::router
