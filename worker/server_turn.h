// TurnStream: one streaming call, from the engine's tokens to the client's messages.
//
// It is the engine's TokenSink and the state behind the call's reactor. The engine never waits for
// the client: while a message is being written, later tokens merge into one pending message, so
// what a slow reader costs is bounded by the answer's own size.
//
// Thread rule: TokenSink calls come from the engine's threads, gRPC's from its own; both meet under
// one mutex.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "loopserve/worker/v1/worker.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/turn.h"
#include "worker/text/incremental_decoder.h"
#include "worker/text/tokenizer.h"

namespace loopserve::worker {

// What a stream says about itself when it starts.
struct TurnStreamInfo {
  std::string session_id;
  std::string worker_id;
  std::string request_id;
  std::string model;
  bool logprobs = false;
};

// `Response` is RunTurnResponse or RunCompletionResponse.
template <typename Response>
class TurnStream final : public TokenSink,
                         public std::enable_shared_from_this<TurnStream<Response>> {
 public:
  TurnStream(TurnStreamInfo info, const Tokenizer& tokenizer, IncrementalDecoder decoder)
      : info_(std::move(info)), tokenizer_(tokenizer), decoder_(std::move(decoder)) {}

  // The reactor to return to gRPC. Call once; it keeps this object alive until the call is over.
  grpc::ServerWriteReactor<Response>* MakeReactor();
  // Ties the stream to its turn in the engine, so that a client that leaves cancels it.
  void Bind(Engine& engine, TurnTicket ticket);

  void OnStarted(const TurnStarted& started) override;
  bool OnToken(const StepToken& token) override;
  void OnReplay(absl::string_view answer, std::span<const common::TokenId> tokens) override;
  std::string AnswerText() override;
  void OnDone(const absl::StatusOr<TurnResult>& result) override;

 private:
  class Reactor;
  void ClientLeft();
  void WriteDone(bool ok);
  // Starts the next write, or finishes the call, if nothing is in flight.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const TurnStreamInfo info_;
  const Tokenizer& tokenizer_;

  absl::Mutex mutex_;
  IncrementalDecoder decoder_ ABSL_GUARDED_BY(mutex_);
  std::string answer_ ABSL_GUARDED_BY(mutex_);
  Reactor* reactor_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::optional<TurnTicket> ticket_ ABSL_GUARDED_BY(mutex_);
  bool client_left_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<chat::v1::TurnStarted> pending_started_ ABSL_GUARDED_BY(mutex_);
  std::optional<chat::v1::TurnDelta> pending_delta_ ABSL_GUARDED_BY(mutex_);
  std::optional<chat::v1::TurnDone> pending_done_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> final_ ABSL_GUARDED_BY(mutex_);
  Response in_flight_;  // owned by gRPC while writing_
};

extern template class TurnStream<::loopserve::worker::v1::RunTurnResponse>;
extern template class TurnStream<::loopserve::worker::v1::RunCompletionResponse>;

}  // namespace loopserve::worker
