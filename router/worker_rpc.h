// One unary call to a worker that goes through Routing: the same choices and retries as a turn
// before its first token. Ends early when the client of the exchange leaves.
//
//   CallWorker<worker::v1::GetSessionRequest, worker::v1::GetSessionResponse>(
//       deps, exchange, state, time_left, &Async::GetSession, fill, done);
//
// Thread rule: safe from any thread; `done` runs on a thread of gRPC, or of the caller when no
// worker could be chosen, exactly once.
#pragma once

#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/error.h"
#include "common/rpc.h"
#include "router/routing.h"
#include "router/wire.h"
#include "router/worker_pool.h"

namespace loopserve::router {

using WorkerAsync = WorkerPool::Stub::async_interface;

struct WorkerCallDeps {
  Routing& routing;
  WorkerPool& pool;
};

template <typename Request, typename Response>
struct UnaryWorkerCall {
  using Rpc = void (WorkerAsync::*)(grpc::ClientContext*, const Request*, Response*,
                                    std::function<void(grpc::Status)>);
  using Self = std::shared_ptr<UnaryWorkerCall>;  // shared with the callback of the open call

  WorkerCallDeps deps;
  ExchangePtr call;
  RouteState state;
  absl::Time deadline;
  Rpc rpc;
  std::function<void(const RouteState&, Request&)> fill;  // the parts that depend on the route
  std::function<void(const RouteState&, absl::StatusOr<Response>)> done;

  Request request;
  Response response;
  std::shared_ptr<grpc::ClientContext> context;  // shared with the hook that cancels it

  static void Attempt(const Self& self) {
    const absl::Duration left = self->deadline - absl::Now();
    absl::Status status = self->deps.routing.Choose(self->state);
    if (status.ok() && left <= absl::ZeroDuration()) {
      status = common::MakeError(common::Reason::kDeadline, "the deadline has passed");
    }
    if (!status.ok()) return self->done(self->state, status);
    self->fill(self->state, self->request);
    self->context = std::make_shared<grpc::ClientContext>();
    self->call->OnCancel([context = self->context] { context->TryCancel(); });
    self->response.Clear();
    common::SetDeadline(*self->context, left);
    self->context->AddMetadata("x-request-id", HeaderValue(self->state.request_id));
    WorkerAsync* async = self->deps.pool.stub(self->state.worker())->async();
    (async->*self->rpc)(self->context.get(), &self->request, &self->response,
                        [self](const grpc::Status& answer) { OnAnswer(self, answer); });
  }

  static void OnAnswer(const Self& self, const grpc::Status& answer) {
    absl::Status status = common::FromGrpc(answer);
    if (status.code() == absl::StatusCode::kCancelled && self->call->context().IsCancelled()) {
      return self->done(self->state, status);
    }
    if (status.ok()) return self->done(self->state, std::move(self->response));
    status = self->deps.routing.AfterFailure(self->state, status);
    if (!status.ok()) return self->done(self->state, status);
    Attempt(self);
  }
};

template <typename Request, typename Response>
void CallWorker(const WorkerCallDeps& deps, ExchangePtr call, RouteState state,
                absl::Duration time_left, typename UnaryWorkerCall<Request, Response>::Rpc rpc,
                std::function<void(const RouteState&, Request&)> fill,
                std::function<void(const RouteState&, absl::StatusOr<Response>)> done) {
  using Call = UnaryWorkerCall<Request, Response>;
  Call::Attempt(std::make_shared<Call>(Call{.deps = deps,
                                            .call = std::move(call),
                                            .state = std::move(state),
                                            .deadline = absl::Now() + time_left,
                                            .rpc = rpc,
                                            .fill = std::move(fill),
                                            .done = std::move(done),
                                            .request = {},
                                            .response = {},
                                            .context = nullptr}));
}

}  // namespace loopserve::router
