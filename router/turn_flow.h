// Flow: one request on its way, from arrival to end. Between a Front (the client's call) and a
// WorkerCall (the stream of the worker that serves it, one per attempt) it holds the state of both:
//
//   Begin -> checks -> [admission queue] -> Attempt -> WorkerCall -> events -> Front::Push
//               |             |                ^           |
//               v             v                +-- retry --+ (before the first token)
//              End           End                           v
//                                                         End
//
// A flow is shared by its front (until that one's OnDone), by the worker's call and by the
// admission queue; whoever calls it holds a share. Its lock is held over calls to the front, so a
// front calls back only from reactions of its own.
//
// Thread rule: all calls are safe from any thread; nothing blocks.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/error.h"
#include "common/queue.h"
#include "common/rpc.h"
#include "common/status_macros.h"
#include "router/turn_kinds.h"
#include "router/turn_proxy.h"
#include "router/wire.h"

namespace loopserve::router {

// Between the worker's deadline and the client's: the error has to travel back in time.
inline constexpr absl::Duration kDeadlineMargin = absl::Milliseconds(50);

// Counts objects, so that what they refer to can outlive them.
class LiveCount {
 public:
  void Add() {
    absl::MutexLock lock(&mutex_);
    ++count_;
  }
  void Done() {
    absl::MutexLock lock(&mutex_);
    --count_;
  }
  void AwaitNone() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* count) { return *count == 0; }, &count_));
  }

 private:
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

// What all flows share.
struct FlowCore {
  FlowCore(const TurnProxyOptions& o, const TurnProxyDeps& d) : options(o), deps(d) {}

  const TurnProxyOptions options;
  const TurnProxyDeps deps;
  std::atomic<bool> shutting_down = false;
  LiveCount flows;
  // Turns that may start now, for the thread that starts them (see GrpcTurnProxy::Loop).
  common::BoundedQueue<Admission::OnTurn> starting{1 << 20};
};

using Headers = std::vector<std::pair<const char*, std::string>>;

// The client's side of a flow.
template <typename Event>
class Front {
 public:
  virtual ~Front() = default;
  virtual void AddHeaders(const Headers& headers) = 0;  // before the first Push or End
  virtual bool Push(Event event) = 0;                   // false: full; the flow will hear OnDrained
  virtual void End(const absl::Status& status) = 0;     // once; the front may be gone afterwards
  virtual void Kill() = 0;                              // ends the client's call from this side
};

inline TokenSource MainSource(const types::v1::Usage& usage) {
  const std::array<uint64_t, 5> tokens = {
      usage.computed_tokens(), usage.restored_device_tokens(), usage.restored_host_tokens(),
      usage.restored_disk_tokens(), usage.restored_remote_tokens()};
  return static_cast<TokenSource>(std::max_element(tokens.begin(), tokens.end()) - tokens.begin());
}

inline std::optional<Rejection> RejectionOf(common::Reason reason) {
  switch (reason) {
    case common::Reason::kQueueFull:
    case common::Reason::kQueueTimeout:
      return Rejection::kQueueFull;
    case common::Reason::kMessageTooLarge:
    case common::Reason::kContextLengthExceeded:
      return Rejection::kTooLong;
    case common::Reason::kDraining:
      return Rejection::kDraining;
    case common::Reason::kNoWorker:
    case common::Reason::kLoading:
      return Rejection::kNoWorker;
    default:
      return std::nullopt;
  }
}

template <typename Kind>
class WorkerCall;

// One request from arrival to end. Shared by the front (until its OnDone), by the worker's call and
// by the admission queue; whoever calls it holds a share.
template <typename Kind>
class Flow final : public std::enable_shared_from_this<Flow<Kind>> {
 public:
  using Event = typename Kind::Event;

  Flow(FlowCore& core, Method method, grpc::CallbackServerContext* context, Front<Event>* front)
      : core_(core),
        deps_(core.deps),
        method_(method),
        arrival_(absl::Now()),
        context_(context),
        front_(front) {
    core_.flows.Add();
  }

  ~Flow() { core_.flows.Done(); }

  // The client's call is over, and with it the flow's claim to keep the process up.
  void OnFrontDone() {
    if (entered_) deps_.gate.Leave();
  }

  void Begin(const grpc::ByteBuffer& bytes, bool once) {
    absl::MutexLock lock(&mutex_);
    const absl::Status status = Accept(bytes, once);
    front_->AddHeaders({{"x-request-id", HeaderValue(route_.request_id)}});
    if (!status.ok()) return End(status);
    ArmAlarm();
    const absl::Duration patience = TimeLeft();
    if (patience <= absl::ZeroDuration()) return End(DeadlineError());
    absl::StatusOr<Admission::Arrival> arrival = deps_.admission.Arrive(
        patience, [self = this->shared_from_this()](absl::Status turn) { self->OnTurn(turn); });
    if (!arrival.ok()) return End(arrival.status());
    ticket_ = arrival->ticket;
    if (arrival->position == 0) return Attempt();
    queued_ = true;
    series().queued->Add(1);
    front_->AddHeaders({{"x-queue-position", absl::StrCat(arrival->position)}});
  }

  // The client left, its deadline passed, or the server cuts the call off.
  void Cancel() {
    absl::MutexLock lock(&mutex_);
    if (front_ == nullptr || cancelled_) return;
    cancelled_ = true;
    if (call_ == nullptr) return End(CancelError());
    call_->Cancel();
    ReadOn();
  }

  void OnDrained() {
    absl::MutexLock lock(&mutex_);
    ReadOn();
  }

  // From the worker's call.
  void OnEvent(Event event) {
    absl::MutexLock lock(&mutex_);
    bool room = true;
    if (!cancelled_ && front_ != nullptr) room = Handle(std::move(event));
    if (room) {
      call_->Next();
    } else {
      paused_ = true;
    }
  }

  void OnWorkerDone(const absl::Status& answer) {
    absl::MutexLock lock(&mutex_);
    call_ = nullptr;
    paused_ = false;
    deps_.table.AddInflight(route_.worker(), -1);
    if (front_ == nullptr) return;
    if (cancelled_) return End(CancelError());
    // Behind `done` only the connection can fail, and the turn is committed.
    if (done_ && (answer.ok() || IsWorkerLost(answer))) return End(absl::OkStatus());
    absl::Status error = answer;
    if (answer.ok()) error = absl::InternalError("the worker ended the answer without a result");
    if (error.code() == absl::StatusCode::kDeadlineExceeded &&
        common::InfoOf(error).reason == common::Reason::kNone) {
      return End(DeadlineError());
    }
    if (streaming_) return End(deps_.routing.AfterBrokenStream(route_, error));
    const absl::Status verdict = deps_.routing.AfterFailure(route_, error);
    if (!verdict.ok()) return End(verdict);
    started_.reset();
    Attempt();
  }

 private:
  ModelSeries& series() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return deps_.metrics.ForModel(model_label_);
  }

  absl::Duration TimeLeft() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Duration cap = core_.options.max_turn_time - (absl::Now() - arrival_);
    return common::RemainingTime(*context_, kDeadlineMargin, std::max(cap, absl::ZeroDuration()));
  }
  static absl::Status DeadlineError() {
    return common::MakeError(common::Reason::kDeadline,
                             "the deadline passed before the answer was done");
  }
  absl::Status CancelError() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (TimeLeft() <= absl::ZeroDuration()) return DeadlineError();
    return common::MakeError(common::Reason::kCancelled, "the call was cancelled");
  }

  // Decodes and checks; takes the session's place.
  absl::Status Accept(const grpc::ByteBuffer& bytes, bool once)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    route_.request_id = RandomId("r-");
    entered_ = deps_.gate.Enter();
    if (!entered_) return DrainingError();
    RETURN_IF_ERROR(DecodeRequest(bytes, once));
    RETURN_IF_ERROR(TakeRequestId());
    RETURN_IF_ERROR(TakeModel());
    tenant_ = HeaderValue(HeaderOf(*context_, "x-tenant"));
    RETURN_IF_ERROR(CheckId("x-tenant", tenant_));
    RETURN_IF_ERROR(Kind::Check(request_));
    return TakeSession();
  }

  absl::Status DecodeRequest(const grpc::ByteBuffer& bytes, bool once)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const size_t limit = core_.options.max_message_bytes;
    if (!once) return Decode(bytes, limit, request_);
    typename Kind::OnceRequest wrapped;
    RETURN_IF_ERROR(Decode(bytes, limit, wrapped));
    if (Kind::Unwrap(wrapped, request_)) return absl::OkStatus();
    return common::InvalidField(Kind::kOnceField, absl::StrCat(Kind::kOnceField, " is missing"));
  }

  absl::Status TakeRequestId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::string id = request_.request_id();
    if (id.empty()) id = HeaderOf(*context_, "x-request-id");
    RETURN_IF_ERROR(CheckId("request_id", id));
    if (!id.empty()) route_.request_id = std::move(id);
    request_.set_request_id(route_.request_id);
    return absl::OkStatus();
  }

  absl::Status TakeModel() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    RETURN_IF_ERROR(CheckId("model", request_.model()));
    const std::vector<std::string> served = deps_.table.Models();
    const bool is_served =
        std::find(served.begin(), served.end(), request_.model()) != served.end();
    if (!request_.model().empty() && !is_served && !served.empty()) {
      return common::MakeError(common::Reason::kModelNotFound,
                               absl::StrCat("no worker serves the model '", request_.model(), "'"));
    }
    if (is_served) model_label_ = request_.model();
    if (request_.model().empty() && !served.empty()) model_label_ = served.front();
    route_.model = model_label_;
    return absl::OkStatus();
  }

  absl::Status TakeSession() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if constexpr (std::is_same_v<Kind, TurnKind>) {
      if (request_.session_id().empty()) {
        route_.create = true;
        request_.set_session_id(RandomId("s-"));
      }
      if (request_.turn_id().empty()) request_.set_turn_id(RandomId("t-"));
      route_.session = common::SessionId(request_.session_id());
      RETURN_IF_ERROR(deps_.busy.Enter(route_.session));
      busy_ = true;
    }
    return absl::OkStatus();
  }

  // The last resort against a client that neither reads nor leaves.
  void ArmAlarm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Time at = arrival_ + core_.options.max_turn_time + absl::Seconds(1);
    alarm_.Set(absl::ToChronoTime(at), [weak = this->weak_from_this()](bool fired) {
      const std::shared_ptr<Flow> self = fired ? weak.lock() : nullptr;
      if (self == nullptr) return;
      absl::MutexLock lock(&self->mutex_);
      if (self->front_ != nullptr) self->front_->Kill();
    });
  }

  void OnTurn(const absl::Status& turn) {
    absl::MutexLock lock(&mutex_);
    if (front_ == nullptr) return;
    queued_ = false;
    series().queued->Add(-1);
    if (!turn.ok()) return End(turn);
    Attempt();
  }

  // Chooses a worker and opens its stream.
  void Attempt() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (cancelled_) return End(CancelError());
    if (const absl::Status status = deps_.routing.Choose(route_); !status.ok()) return End(status);
    const absl::Duration left = TimeLeft();
    if (left <= absl::ZeroDuration()) return End(DeadlineError());
    if (!launched_) {
      launched_ = true;
      series().queue_duration->Observe(absl::ToDoubleSeconds(absl::Now() - arrival_));
      series().inflight->Add(1);
    }
    deps_.table.AddInflight(route_.worker(), 1);
    call_ = new WorkerCall<Kind>(this->shared_from_this());
    Kind::Address(route_, request_, call_->request());
    call_->request().set_tenant(tenant_);
    call_->Start(*deps_.pool.stub(route_.worker()), left, route_.request_id,
                 HeaderOf(*context_, "traceparent"));
  }

  // Whether there is room for more.
  bool Handle(Event event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const EventKind kind = Kind::KindOf(event);
    if (kind == EventKind::kNone) return true;
    if constexpr (std::is_same_v<Kind, TurnKind>) {
      if (kind == EventKind::kStarted) {
        event.mutable_started()->set_session_id(route_.session.value());
        event.mutable_started()->set_worker_id(route_.worker().value());
        event.mutable_started()->set_request_id(route_.request_id);
        started_ = std::move(event);
        return true;
      }
    }
    if (kind == EventKind::kDone) done_ = event.done();
    bool room = true;
    if (!streaming_) {
      streaming_ = true;
      front_->AddHeaders(RouteHeaders());
      if (started_) room = front_->Push(*std::move(started_));
    }
    return front_->Push(std::move(event)) && room;
  }

  Headers RouteHeaders() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Headers headers = {{"x-worker-id", HeaderValue(route_.worker().value())},
                       {"x-session-affinity", std::string(NameOf(route_.affinity))}};
    if (!route_.session.value().empty()) {
      headers.emplace_back("x-session-id", HeaderValue(route_.session.value()));
    }
    return headers;
  }

  void ReadOn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (call_ != nullptr && std::exchange(paused_, false)) call_->Next();
  }

  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Front<Event>* front = std::exchange(front_, nullptr);
    if (front == nullptr) return;
    if (queued_) series().queued->Add(-1);
    queued_ = false;
    ForgetIfNothingIsKept(status);
    if (launched_) deps_.routing.Used(route_, status.ok());
    if (busy_) deps_.busy.Leave(route_.session);
    if (ticket_ != 0) {
      for (Admission::OnTurn& next : deps_.admission.Leave(ticket_)) {
        core_.starting.TryPush(std::move(next));
      }
    }
    Count(status);
    alarm_.Cancel();
    front->End(status);
  }

  void ForgetIfNothingIsKept(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if constexpr (std::is_same_v<Kind, TurnKind>) {
      if (!route_.create || !launched_) return;
      const bool partial = streaming_ && cancelled_ && request_.commit_partial();
      if (request_.ephemeral() || (!status.ok() && !partial)) deps_.routing.Forget(route_);
    }
  }

  // In the middle of the answer, or before it when nobody was left to take over.
  bool EndedByALostWorker(common::Reason reason) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const std::vector<Avoided>& failed = route_.avoided;
    return reason == common::Reason::kWorkerLost ||
           (reason == common::Reason::kNoWorker && !failed.empty() &&
            failed.back().why == PlacementReason::kWorkerLost);
  }

  void Count(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ModelSeries& s = series();
    const double seconds = absl::ToDoubleSeconds(absl::Now() - arrival_);
    const auto code = static_cast<size_t>(status.code());
    s.requests[static_cast<size_t>(method_)][std::min<size_t>(code, kGrpcCodes - 1)]->Increment();
    s.duration->Observe(seconds);
    if (launched_) s.inflight->Add(-1);
    const common::Reason reason = common::InfoOf(status).reason;
    const std::optional<Rejection> rejection = RejectionOf(reason);
    if (cancelled_ && !status.ok()) {
      const bool late = status.code() == absl::StatusCode::kDeadlineExceeded;
      const Abortion by_whom = core_.shutting_down ? Abortion::kShutdown : Abortion::kClient;
      s.aborted[late ? Abortion::kDeadline : by_whom].Increment();
    } else if (reason == common::Reason::kDeadline) {
      s.aborted[Abortion::kDeadline].Increment();
    } else if (EndedByALostWorker(reason)) {
      s.aborted[Abortion::kWorkerLost].Increment();
    } else if (rejection && !streaming_) {
      s.rejected[*rejection].Increment();
    }
    if (status.ok() && done_) {
      s.affinity[static_cast<size_t>(route_.affinity)][MainSource(done_->usage())].Increment();
    }
    deps_.log.Info("request ended",
                   {{"request_id", route_.request_id},
                    {"session_id", route_.session.value()},
                    {"worker", route_.worker().value()},
                    {"code", absl::StatusCodeToString(status.code())},
                    {"reason", common::NameOf(reason)},
                    {"attempts", route_.attempts},
                    {"prompt_tokens", done_ ? done_->usage().prompt_tokens() : 0},
                    {"completion_tokens", done_ ? done_->usage().completion_tokens() : 0},
                    {"seconds", seconds}});
  }

  FlowCore& core_;
  const TurnProxyDeps& deps_;
  const Method method_;
  const absl::Time arrival_;

  absl::Mutex mutex_;
  // Both live until front_->End.
  grpc::CallbackServerContext* const context_;
  Front<Event>* front_ ABSL_GUARDED_BY(mutex_);               // null: ended
  WorkerCall<Kind>* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // lives until OnWorkerDone
  typename Kind::Request request_ ABSL_GUARDED_BY(mutex_);
  RouteState route_ ABSL_GUARDED_BY(mutex_);
  std::string model_label_ ABSL_GUARDED_BY(mutex_);
  std::string tenant_ ABSL_GUARDED_BY(mutex_);
  Admission::Ticket ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  bool entered_ = false;  // written by Begin, read by OnFrontDone
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool queued_ ABSL_GUARDED_BY(mutex_) = false;
  bool launched_ ABSL_GUARDED_BY(mutex_) = false;   // a worker has been called
  bool streaming_ ABSL_GUARDED_BY(mutex_) = false;  // the client has been told something
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;     // no read in flight: the front is full
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Event> started_ ABSL_GUARDED_BY(mutex_);
  std::optional<chat::v1::TurnDone> done_ ABSL_GUARDED_BY(mutex_);
  grpc::Alarm alarm_;
};

// The worker's side of a flow: one stream; deletes itself when it is over.
template <typename Kind>
class WorkerCall final : public grpc::ClientReadReactor<typename Kind::WorkerResponse> {
 public:
  explicit WorkerCall(std::shared_ptr<Flow<Kind>> flow) : flow_(std::move(flow)) {}

  typename Kind::WorkerRequest& request() { return request_; }

  void Start(WorkerPool::Stub& stub, absl::Duration time_left, const std::string& request_id,
             const std::string& trace) {
    common::SetDeadline(context_, time_left);
    context_.AddMetadata("x-request-id", HeaderValue(request_id));
    if (!trace.empty()) context_.AddMetadata("traceparent", HeaderValue(trace));
    Kind::Open(stub, &context_, &request_, this);
    this->AddHold();  // until the stream ends: reads are also started outside reactions
    this->StartRead(&response_);
    this->StartCall();
  }
  void Next() { this->StartRead(&response_); }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return this->RemoveHold();
    flow_->OnEvent(std::move(*response_.mutable_event()));
  }
  void OnDone(const grpc::Status& status) override {
    flow_->OnWorkerDone(common::FromGrpc(status));
    delete this;
  }

 private:
  const std::shared_ptr<Flow<Kind>> flow_;
  grpc::ClientContext context_;
  typename Kind::WorkerRequest request_;
  typename Kind::WorkerResponse response_;
};

}  // namespace loopserve::router
