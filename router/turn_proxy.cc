#include "router/turn_proxy.h"

#include <deque>
#include <optional>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc.h"
#include "common/thread.h"
#include "router/turn_flow.h"
#include "router/wire.h"

namespace loopserve::router {
namespace {

using grpc::ByteBuffer;

// The client's side of a streaming call; deletes itself when it is over.
template <typename Kind>
class StreamFront final : public TurnProxy::Stream, public Front<typename Kind::Event> {
 public:
  StreamFront(FlowCore& core, Method method, grpc::CallbackServerContext* context)
      : context_(context),
        capacity_(core.options.buffered_events),
        flow_(std::make_shared<Flow<Kind>>(core, method, context, this)) {}

  void Begin(const ByteBuffer& request) { flow_->Begin(request, /*once=*/false); }

  void AddHeaders(const Headers& headers) override {
    for (const auto& [name, value] : headers) context_->AddInitialMetadata(name, value);
  }
  bool Push(typename Kind::Event event) override {
    bool room;
    {
      absl::MutexLock lock(&mutex_);
      if (dead_) return true;
      waiting_.push_back(Encode(event));
      room = waiting_.size() < capacity_;
      if (!room) full_ = true;
    }
    Pump();
    return room;
  }
  void End(const absl::Status& status) override {
    {
      absl::MutexLock lock(&mutex_);
      last_ = common::ToGrpc(status);
    }
    Pump();
  }
  void Kill() override { context_->TryCancel(); }

  void OnWriteDone(bool ok) override {
    bool drained = false;
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      waiting_.pop_front();
      if (!ok) {
        dead_ = true;
        waiting_.clear();
      }
      if (full_ && waiting_.size() <= capacity_ / 2) {
        full_ = false;
        drained = true;
      }
    }
    if (!ok) flow_->Cancel();
    Pump();
    if (drained) flow_->OnDrained();
  }
  void OnCancel() override { flow_->Cancel(); }
  void OnDone() override {
    flow_->OnFrontDone();
    delete this;
  }

 private:
  // Starts the next write, or the end. After the end `this` may be gone.
  void Pump() {
    const ByteBuffer* write = nullptr;
    grpc::Status last;
    {
      absl::MutexLock lock(&mutex_);
      if (writing_ || ended_) return;
      if (!waiting_.empty()) {
        writing_ = true;
        write = &waiting_.front();
      } else if (last_) {
        ended_ = true;
        last = *last_;
      } else {
        return;
      }
    }
    if (write != nullptr) {
      StartWrite(write);
    } else {
      Finish(last);
    }
  }

  grpc::CallbackServerContext* const context_;
  const size_t capacity_;
  const std::shared_ptr<Flow<Kind>> flow_;
  absl::Mutex mutex_;
  std::deque<ByteBuffer> waiting_ ABSL_GUARDED_BY(mutex_);  // the first may be in flight
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool full_ ABSL_GUARDED_BY(mutex_) = false;  // the flow waits for OnDrained
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;  // a write failed: the client is gone
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<grpc::Status> last_ ABSL_GUARDED_BY(mutex_);
};

// The client's side of a unary call: collects. The flow calls it under its lock.
template <typename Kind>
class OnceFront final : public TurnProxy::Unary, public Front<typename Kind::Event> {
 public:
  OnceFront(FlowCore& core, Method method, grpc::CallbackServerContext* context,
            ByteBuffer* response)
      : context_(context),
        response_(response),
        flow_(std::make_shared<Flow<Kind>>(core, method, context, this)) {}

  void Begin(const ByteBuffer& request) { flow_->Begin(request, /*once=*/true); }

  void AddHeaders(const Headers& headers) override {
    for (const auto& [name, value] : headers) context_->AddInitialMetadata(name, value);
  }
  bool Push(typename Kind::Event event) override {
    Kind::Collect(event, collected_);
    return true;
  }
  void End(const absl::Status& status) override {
    if (status.ok()) *response_ = Encode(collected_);
    Finish(common::ToGrpc(status));
  }
  void Kill() override { context_->TryCancel(); }

  void OnCancel() override { flow_->Cancel(); }
  void OnDone() override {
    flow_->OnFrontDone();
    delete this;
  }

 private:
  grpc::CallbackServerContext* const context_;
  ByteBuffer* const response_;
  const std::shared_ptr<Flow<Kind>> flow_;
  typename Kind::OnceResponse collected_;
};

class GrpcTurnProxy final : public TurnProxy {
 public:
  GrpcTurnProxy(const TurnProxyOptions& options, const TurnProxyDeps& deps) : core_(options, deps) {
    thread_ = common::NamedThread("admission", [this](std::stop_token stop) { Loop(stop); });
  }

  ~GrpcTurnProxy() override { core_.flows.AwaitNone(); }

  Stream* Turn(grpc::CallbackServerContext* context, const ByteBuffer* request) override {
    return OpenStream<TurnKind>(Method::kTurn, context, request);
  }
  Unary* TurnOnce(grpc::CallbackServerContext* context, const ByteBuffer* request,
                  ByteBuffer* response) override {
    return OpenOnce<TurnKind>(Method::kTurnOnce, context, request, response);
  }
  Stream* Complete(grpc::CallbackServerContext* context, const ByteBuffer* request) override {
    return OpenStream<CompletionKind>(Method::kComplete, context, request);
  }
  Unary* CompleteOnce(grpc::CallbackServerContext* context, const ByteBuffer* request,
                      ByteBuffer* response) override {
    return OpenOnce<CompletionKind>(Method::kCompleteOnce, context, request, response);
  }
  void OnShutdown() override { core_.shutting_down = true; }

 private:
  template <typename Kind>
  Stream* OpenStream(Method method, grpc::CallbackServerContext* context,
                     const ByteBuffer* request) {
    auto* front = new StreamFront<Kind>(core_, method, context);
    front->Begin(*request);
    return front;
  }
  template <typename Kind>
  Unary* OpenOnce(Method method, grpc::CallbackServerContext* context, const ByteBuffer* request,
                  ByteBuffer* response) {
    auto* front = new OnceFront<Kind>(core_, method, context, response);
    front->Begin(*request);
    return front;
  }

  // Starts those whose turn it is, and refuses those who have waited too long. On a thread of its
  // own, because one end may start many and each of those may end at once.
  void Loop(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::optional<Admission::OnTurn> next = core_.starting.Pop(absl::Milliseconds(50));
      if (next) (*next)(absl::OkStatus());
      for (Admission::OnTurn& late : core_.deps.admission.Expire()) {
        late(Admission::QueueTimeout());
      }
    }
  }

  FlowCore core_;
  std::jthread thread_;
};

}  // namespace

std::string RandomId(absl::string_view prefix) {
  std::random_device random;  // the kernel's: an id is not to be guessed from another one
  return absl::StrFormat("%s%08x%08x%08x%08x", prefix, random(), random(), random(), random());
}

std::unique_ptr<TurnProxy> TurnProxy::Create(const TurnProxyOptions& options,
                                             const TurnProxyDeps& deps) {
  return std::make_unique<GrpcTurnProxy>(options, deps);
}

}  // namespace loopserve::router
