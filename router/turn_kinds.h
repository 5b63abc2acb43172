// What differs between a turn and a completion on their way through the router; the rest of the way
// (turn_flow.h) is a template over this.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "loopserve/chat/v1/chat.pb.h"
#include "loopserve/worker/v1/worker.pb.h"
#include "router/admission.h"
#include "router/routing.h"
#include "router/worker_pool.h"

namespace loopserve::router {

enum class EventKind { kStarted, kDelta, kDone, kNone };

// What differs between a turn and a completion.
struct TurnKind {
  using Request = chat::v1::TurnRequest;
  using OnceRequest = chat::v1::TurnOnceRequest;
  using OnceResponse = chat::v1::TurnOnceResponse;
  using Event = chat::v1::TurnResponse;
  using WorkerRequest = worker::v1::RunTurnRequest;
  using WorkerResponse = worker::v1::RunTurnResponse;
  static constexpr char kOnceField[] = "turn";

  static bool Unwrap(OnceRequest& once, Request& request) {
    if (!once.has_turn()) return false;
    request.Swap(once.mutable_turn());
    return true;
  }
  static absl::Status Check(const Request& request) {
    RETURN_IF_ERROR(CheckId("session_id", request.session_id()));
    return CheckId("turn_id", request.turn_id());
  }
  static void Open(WorkerPool::Stub& stub, grpc::ClientContext* context,
                   const WorkerRequest* request, grpc::ClientReadReactor<WorkerResponse>* reactor) {
    stub.async()->RunTurn(context, request, reactor);
  }
  static EventKind KindOf(const Event& event) {
    if (event.has_started()) return EventKind::kStarted;
    if (event.has_delta()) return EventKind::kDelta;
    return event.has_done() ? EventKind::kDone : EventKind::kNone;
  }
  // Fills the parts that depend on the route.
  static void Address(const RouteState& route, const Request& turn, WorkerRequest& request) {
    request.mutable_session()->set_id(route.session.value());
    request.mutable_session()->set_epoch(route.pin.epoch.value());
    request.set_create(route.create);
    *request.mutable_turn() = turn;
  }
  static void Collect(const Event& event, OnceResponse& once) {
    if (event.has_started()) *once.mutable_started() = event.started();
    if (event.has_done()) *once.mutable_done() = event.done();
    if (event.has_delta()) Append(event.delta(), once);
  }
  template <typename Once>
  static void Append(const chat::v1::TurnDelta& delta, Once& once) {
    once.mutable_text()->append(delta.text());
    once.mutable_token_ids()->MergeFrom(delta.token_ids());
    once.mutable_logprobs()->MergeFrom(delta.logprobs());
  }
};

struct CompletionKind {
  using Request = chat::v1::CompleteRequest;
  using OnceRequest = chat::v1::CompleteOnceRequest;
  using OnceResponse = chat::v1::CompleteOnceResponse;
  using Event = chat::v1::CompleteResponse;
  using WorkerRequest = worker::v1::RunCompletionRequest;
  using WorkerResponse = worker::v1::RunCompletionResponse;
  static constexpr char kOnceField[] = "complete";

  static bool Unwrap(OnceRequest& once, Request& request) {
    if (!once.has_complete()) return false;
    request.Swap(once.mutable_complete());
    return true;
  }
  static absl::Status Check(const Request&) { return absl::OkStatus(); }
  static void Open(WorkerPool::Stub& stub, grpc::ClientContext* context,
                   const WorkerRequest* request, grpc::ClientReadReactor<WorkerResponse>* reactor) {
    stub.async()->RunCompletion(context, request, reactor);
  }
  static EventKind KindOf(const Event& event) {
    if (event.has_delta()) return EventKind::kDelta;
    return event.has_done() ? EventKind::kDone : EventKind::kNone;
  }
  static void Address(const RouteState&, const Request& complete, WorkerRequest& request) {
    *request.mutable_complete() = complete;
  }
  static void Collect(const Event& event, OnceResponse& once) {
    if (event.has_done()) *once.mutable_done() = event.done();
    if (event.has_delta()) TurnKind::Append(event.delta(), once);
  }
};

}  // namespace loopserve::router
