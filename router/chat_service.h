// chat.v1.Chat: turns and completions go through the TurnProxy; the small questions (tokens,
// models) go to any worker, or are answered from what the workers said of themselves.
//
// Thread rule: safe from any thread; nothing blocks.
#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "absl/time/time.h"
#include "common/lifecycle.h"
#include "router/turn_proxy.h"
#include "router/worker_rpc.h"
#include "router/worker_table.h"

namespace loopserve::router {

struct ChatServiceDeps {
  TurnProxy& proxy;
  WorkerCallDeps worker;
  WorkerTable& table;
  common::Gate& gate;
  size_t max_message_bytes;
  absl::Duration call_timeout = absl::Seconds(60);  // of a unary call without a deadline
};

std::unique_ptr<grpc::Service> CreateChatService(const ChatServiceDeps& deps);

}  // namespace loopserve::router
