#include "worker/server_turn.h"

#include <utility>

#include "common/rpc.h"
#include "worker/server_messages.h"

namespace loopserve::worker {
namespace {

using v1::RunCompletionResponse;
using v1::RunTurnResponse;

// A completion has no session to announce.
bool PutStarted(const chat::v1::TurnStarted& started, RunTurnResponse& out) {
  *out.mutable_event()->mutable_started() = started;
  return true;
}
bool PutStarted(const chat::v1::TurnStarted&, RunCompletionResponse&) { return false; }

}  // namespace

template <typename Response>
class TurnStream<Response>::Reactor final : public grpc::ServerWriteReactor<Response> {
 public:
  explicit Reactor(std::shared_ptr<TurnStream> stream) : stream_(std::move(stream)) {}
  void OnWriteDone(bool ok) override { stream_->WriteDone(ok); }
  void OnCancel() override { stream_->ClientLeft(); }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<TurnStream> stream_;
};

template <typename Response>
grpc::ServerWriteReactor<Response>* TurnStream<Response>::MakeReactor() {
  auto* reactor = new Reactor(this->shared_from_this());  // deletes itself in OnDone
  absl::MutexLock lock(&mutex_);
  reactor_ = reactor;
  Advance();  // the engine may have answered already
  return reactor;
}

template <typename Response>
void TurnStream<Response>::Bind(Engine& engine, TurnTicket ticket) {
  absl::MutexLock lock(&mutex_);
  engine_ = &engine;
  ticket_ = ticket;
  if (client_left_) engine.Cancel(ticket);
}

template <typename Response>
void TurnStream<Response>::ClientLeft() {
  absl::MutexLock lock(&mutex_);
  client_left_ = true;
  if (ticket_) engine_->Cancel(*ticket_);
}

template <typename Response>
void TurnStream<Response>::WriteDone(bool ok) {
  // Finishing may end the reactor, which may hold the last reference, before this returns.
  const auto self = this->shared_from_this();
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) {
    client_left_ = true;
    if (ticket_) engine_->Cancel(*ticket_);
  }
  Advance();
}

template <typename Response>
void TurnStream<Response>::OnStarted(const TurnStarted& started) {
  absl::MutexLock lock(&mutex_);
  chat::v1::TurnStarted& out = pending_started_.emplace();
  out.set_session_id(info_.session_id);
  out.set_turn(started.turn);
  out.set_worker_id(info_.worker_id);
  out.set_request_id(info_.request_id);
  out.set_model(info_.model);
  out.set_replayed(started.replayed);
  Advance();
}

template <typename Response>
bool TurnStream<Response>::OnToken(const StepToken& token) {
  absl::MutexLock lock(&mutex_);
  if (token.is_stop) return false;
  if (!pending_delta_) pending_delta_.emplace();
  pending_delta_->add_token_ids(static_cast<uint32_t>(token.token));
  if (info_.logprobs) LogprobsToProto(token, tokenizer_, pending_delta_->add_logprobs());
  const std::string text = decoder_.Push(token.token);
  answer_ += text;
  pending_delta_->mutable_text()->append(text);
  Advance();
  return decoder_.stopped();
}

template <typename Response>
void TurnStream<Response>::OnReplay(absl::string_view answer,
                                    std::span<const common::TokenId> tokens) {
  absl::MutexLock lock(&mutex_);
  chat::v1::TurnDelta& delta = pending_delta_.emplace();
  delta.set_text(std::string(answer));
  for (const common::TokenId id : tokens) {
    if (!tokenizer_.IsControl(id)) delta.add_token_ids(static_cast<uint32_t>(id));
  }
  Advance();
}

template <typename Response>
std::string TurnStream<Response>::AnswerText() {
  absl::MutexLock lock(&mutex_);
  const std::string rest = decoder_.Flush();
  if (!rest.empty()) {
    if (!pending_delta_) pending_delta_.emplace();
    pending_delta_->mutable_text()->append(rest);
    answer_ += rest;
    Advance();
  }
  return answer_;
}

template <typename Response>
void TurnStream<Response>::OnDone(const absl::StatusOr<TurnResult>& result) {
  absl::MutexLock lock(&mutex_);
  if (result.ok()) DoneToProto(*result, &pending_done_.emplace());
  final_ = common::ToGrpc(result.status());
  Advance();
}

template <typename Response>
void TurnStream<Response>::Advance() {
  if (writing_ || finished_ || reactor_ == nullptr) return;
  if (!client_left_) {
    in_flight_.Clear();
    if (pending_started_ && PutStarted(*std::exchange(pending_started_, {}), in_flight_)) {
      writing_ = true;
    } else if (pending_delta_) {
      *in_flight_.mutable_event()->mutable_delta() = *std::exchange(pending_delta_, {});
      writing_ = true;
    } else if (pending_done_) {
      *in_flight_.mutable_event()->mutable_done() = *std::exchange(pending_done_, {});
      writing_ = true;
    }
    if (writing_) {
      reactor_->StartWrite(&in_flight_);
      return;
    }
  }
  if (final_) {
    finished_ = true;
    std::exchange(reactor_, nullptr)->Finish(*final_);
  }
}

template class TurnStream<RunTurnResponse>;
template class TurnStream<RunCompletionResponse>;

}  // namespace loopserve::worker
