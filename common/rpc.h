// The edge between absl::Status and gRPC: codes, details, deadlines, channels. The only place that
// knows both.
//
// Details travel in grpc-status-details-bin as a serialized google.rpc.Status with
// ErrorInfo{reason, domain "loopserve"}, RetryInfo and BadRequest, as far as the error has them.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/error.h"

namespace loopserve::common {

grpc::Status ToGrpc(const absl::Status& status);
// Restores code, message and ErrorInfo of what a server of ours sent.
absl::Status FromGrpc(const grpc::Status& status);

// What is left of a server call's deadline minus `margin`, at most `cap`; `cap` if it has none.
absl::Duration RemainingTime(const grpc::ServerContextBase& context, absl::Duration margin,
                             absl::Duration cap);
void SetDeadline(grpc::ClientContext& context, absl::Duration from_now);

// A plaintext channel with our keepalive and message limits. Channels to equal targets are not
// shared.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target,
                                           int max_message_bytes = 4 << 20);

}  // namespace loopserve::common
