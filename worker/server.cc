#include "worker/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <atomic>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "common/version.h"
#include "loopserve/worker/v1/worker.grpc.pb.h"
#include "worker/server_messages.h"
#include "worker/server_report.h"
#include "worker/server_turn.h"

namespace loopserve::worker {
namespace {

using common::InvalidField;
using common::MakeError;
using common::Reason;
using common::SessionRef;
using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;
using grpc::ServerWriteReactor;

constexpr char kServiceName[] = "loopserve.worker.v1.Worker";
constexpr absl::Duration kStepLimit = absl::Seconds(60);
constexpr absl::Duration kTurnCap = absl::Hours(1);

// A stream that ends at once with an error.
template <typename Response>
class FailedStream final : public ServerWriteReactor<Response> {
 public:
  explicit FailedStream(const absl::Status& status) { this->Finish(common::ToGrpc(status)); }
  void OnDone() override { delete this; }
};

absl::Status IsStopping() {
  return MakeError({.reason = Reason::kDraining, .retry_after = absl::Seconds(1)},
                   "the worker is stopping");
}

SessionRef RefFromProto(const types::v1::SessionRef& proto) {
  return {common::SessionId(proto.id()), common::Epoch(proto.epoch())};
}

std::string RandomInstanceId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

class Server final : public WorkerServer, public v1::Worker::CallbackService {
 public:
  Server(const ServerOptions& options, const ServerParts& parts)
      : options_(options), parts_(parts), instance_id_(RandomInstanceId()), io_("worker-rpc", 4) {}

  ~Server() override { Shutdown(); }

  absl::Status Listen();
  int port() const override { return port_; }
  void BeginDrain() override;
  size_t DrainAndPark() override;
  void Shutdown() override;

  ServerWriteReactor<v1::RunTurnResponse>* RunTurn(CallbackServerContext* context,
                                                   const v1::RunTurnRequest* request) override;
  ServerWriteReactor<v1::RunCompletionResponse>* RunCompletion(
      CallbackServerContext* context, const v1::RunCompletionRequest* request) override;
  ServerUnaryReactor* Tokenize(CallbackServerContext* context, const v1::TokenizeRequest* request,
                               v1::TokenizeResponse* response) override;
  ServerUnaryReactor* Detokenize(CallbackServerContext* context,
                                 const v1::DetokenizeRequest* request,
                                 v1::DetokenizeResponse* response) override;
  ServerUnaryReactor* GetInfo(CallbackServerContext* context, const v1::GetInfoRequest* request,
                              v1::GetInfoResponse* response) override;
  ServerWriteReactor<v1::ReportSessionsResponse>* ReportSessions(
      CallbackServerContext* context, const v1::ReportSessionsRequest* request) override;
  ServerUnaryReactor* CreateSession(CallbackServerContext* context,
                                    const v1::CreateSessionRequest* request,
                                    v1::CreateSessionResponse* response) override;
  ServerUnaryReactor* GetSession(CallbackServerContext* context,
                                 const v1::GetSessionRequest* request,
                                 v1::GetSessionResponse* response) override;
  ServerUnaryReactor* UpdateSession(CallbackServerContext* context,
                                    const v1::UpdateSessionRequest* request,
                                    v1::UpdateSessionResponse* response) override;
  ServerUnaryReactor* ForgetSession(CallbackServerContext* context,
                                    const v1::ForgetSessionRequest* request,
                                    v1::ForgetSessionResponse* response) override;
  ServerUnaryReactor* ForkSession(CallbackServerContext* context,
                                  const v1::ForkSessionRequest* request,
                                  v1::ForkSessionResponse* response) override;
  ServerUnaryReactor* RewindSession(CallbackServerContext* context,
                                    const v1::RewindSessionRequest* request,
                                    v1::RewindSessionResponse* response) override;
  ServerUnaryReactor* ParkSession(CallbackServerContext* context,
                                  const v1::ParkSessionRequest* request,
                                  v1::ParkSessionResponse* response) override;
  ServerUnaryReactor* PrepareSession(CallbackServerContext* context,
                                     const v1::PrepareSessionRequest* request,
                                     v1::PrepareSessionResponse* response) override;
  ServerUnaryReactor* Drain(CallbackServerContext* context, const v1::DrainRequest* request,
                            v1::DrainResponse* response) override;

 private:
  // Finishes a unary call with what `work` returns, on the pool.
  template <typename Work>
  ServerUnaryReactor* OnPool(CallbackServerContext* context, Work work);
  // The same for an operation that answers with the session's new state.
  template <typename Response>
  ServerUnaryReactor* SessionCall(CallbackServerContext* context, Response* response,
                                  std::function<absl::StatusOr<SessionInfo>()> work);

  absl::Status CheckModel(const std::string& model) const;
  // Of a new session, in seconds; 0: until deleted.
  int64_t DefaultTtl() const {
    return absl::ToInt64Seconds(absl::Ceil(options_.session_ttl, absl::Seconds(1)));
  }
  absl::StatusOr<TurnSpec> SpecOf(const CallbackServerContext& context,
                                  const v1::RunTurnRequest& request) const;
  absl::StatusOr<TurnSpec> SpecOf(const CallbackServerContext& context,
                                  const v1::RunCompletionRequest& wrapped) const;
  template <typename Response>
  ServerWriteReactor<Response>* Start(TurnSpec spec, TurnStreamInfo info);
  void FillModel(chat::v1::Model* out) const;
  void FillTiers(v1::GetInfoResponse* out) const;
  void SayReady(bool ready);
  // Keeps the health service true and deletes what has outlived its ttl.
  void Housekeeping(std::stop_token stop);

  const ServerOptions options_;
  const ServerParts parts_;
  const std::string instance_id_;
  std::atomic<bool> draining_ = false;
  absl::Mutex health_mutex_;
  int port_ = 0;
  common::ThreadPool io_;
  std::unique_ptr<grpc::Server> server_;
  std::jthread housekeeping_;
};

absl::Status Server::Listen() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.SetMaxReceiveMessageSize(8 << 20);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options_.listen,
                     ": is the port in use? Choose another with --listen"));
  }
  server_->GetHealthCheckService()->SetServingStatus("", true);
  server_->GetHealthCheckService()->SetServingStatus(kServiceName, true);
  housekeeping_ = common::NamedThread(
      "housekeeping", [this](std::stop_token stop) { Housekeeping(std::move(stop)); });
  return absl::OkStatus();
}

void Server::Housekeeping(std::stop_token stop) {
  absl::Mutex mutex;
  bool stopping = false;
  std::stop_callback wake(stop, [&] {
    absl::MutexLock lock(&mutex);
    stopping = true;
  });
  absl::MutexLock lock(&mutex);
  bool was_whole = true;
  for (int second = 1; !mutex.AwaitWithTimeout(absl::Condition(&stopping), absl::Seconds(1));
       ++second) {
    const bool alive = parts_.engine.alive(kStepLimit);
    const absl::Status whole = parts_.ranks.whole();
    if (const bool was = std::exchange(was_whole, whole.ok()); was && !whole.ok()) {
      parts_.log.Warning("not ready", {{"why", whole.message()}});
    } else if (!was && whole.ok()) {
      parts_.log.Info("ready again");
    }
    server_->GetHealthCheckService()->SetServingStatus("", alive);
    SayReady(alive && whole.ok());
    if (second % 30 == 0) io_.Submit([this] { parts_.sessions.SweepExpired(); });
  }
}

void Server::BeginDrain() {
  draining_ = true;
  SayReady(false);
}

// A drain has the last word.
void Server::SayReady(bool ready) {
  absl::MutexLock lock(&health_mutex_);
  server_->GetHealthCheckService()->SetServingStatus(kServiceName, ready && !draining_);
}

size_t Server::DrainAndPark() {
  BeginDrain();
  if (const absl::Status status = parts_.engine.Drain(options_.drain_timeout); !status.ok()) {
    parts_.log.Warning("turns were still running at the drain timeout",
                       {{"status", status.ToString()}});
  }
  const size_t parked = parts_.sessions.ParkAll();
  if (parts_.store != nullptr) {
    if (const absl::Status status = parts_.store->Flush(options_.drain_timeout); !status.ok()) {
      parts_.log.Warning("some KV was not saved; it will be computed again",
                         {{"status", status.ToString()}});
    }
  }
  return parked;
}

void Server::Shutdown() {
  if (server_ == nullptr) return;
  housekeeping_ = {};
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  io_.Stop();
  server_->Wait();
  server_ = nullptr;
}

template <typename Work>
ServerUnaryReactor* Server::OnPool(CallbackServerContext* context, Work work) {
  ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool taken = io_.Submit(
      [reactor, work = std::move(work)]() mutable { reactor->Finish(common::ToGrpc(work())); });
  if (!taken) reactor->Finish(common::ToGrpc(IsStopping()));
  return reactor;
}

template <typename Response>
ServerUnaryReactor* Server::SessionCall(CallbackServerContext* context, Response* response,
                                        std::function<absl::StatusOr<SessionInfo>()> work) {
  return OnPool(context, [this, response, work = std::move(work)]() -> absl::Status {
    ASSIGN_OR_RETURN(const SessionInfo info, work());
    SessionToProto(info, options_.model_name, options_.worker_id, response->mutable_session());
    return absl::OkStatus();
  });
}

absl::Status Server::CheckModel(const std::string& model) const {
  if (model.empty() || model == options_.model_name) return absl::OkStatus();
  return MakeError(Reason::kModelNotFound, absl::StrCat("model '", model, "' is not served here; '",
                                                        options_.model_name, "' is"));
}

absl::StatusOr<TurnSpec> Server::SpecOf(const CallbackServerContext& context,
                                        const v1::RunTurnRequest& request) const {
  const chat::v1::TurnRequest& turn = request.turn();
  RETURN_IF_ERROR(CheckModel(turn.model()));
  if (parts_.chat_template == nullptr) {
    return MakeError(Reason::kUnsupported,
                     "the model has no chat template; use Complete instead of Turn");
  }
  if (request.session().id().empty()) return InvalidField("session.id", "it is empty");
  TurnSpec spec;
  ASSIGN_OR_RETURN(std::vector<Message> messages, MessagesFromProto(turn));
  ASSIGN_OR_RETURN(spec.sampling, SamplingFromProto(turn.sampling()));
  spec.session = RefFromProto(request.session());
  spec.create = request.create();
  spec.ttl_seconds = DefaultTtl();
  spec.tenant = request.tenant();
  spec.turn_id = turn.turn_id();
  if (turn.has_base_turn()) spec.base_turn = turn.base_turn();
  spec.ephemeral = turn.ephemeral();
  spec.commit_partial = turn.commit_partial();
  spec.bypass_cache = turn.bypass_cache();
  spec.arrival = absl::Now();
  spec.deadline = spec.arrival + common::RemainingTime(context, absl::ZeroDuration(), kTurnCap);
  spec.render = [messages = std::move(messages),
                 chat = parts_.chat_template](const kvstore::SessionRecord& record) {
    return chat->RenderTurn(chat->StateOf(record.tokens), messages);
  };
  return spec;
}

absl::StatusOr<TurnSpec> Server::SpecOf(const CallbackServerContext& context,
                                        const v1::RunCompletionRequest& wrapped) const {
  const chat::v1::CompleteRequest& request = wrapped.complete();
  RETURN_IF_ERROR(CheckModel(request.model()));
  std::vector<common::TokenId> prompt;
  if (request.has_tokens()) {
    for (const uint32_t id : request.tokens().ids()) {
      if (id >= parts_.tokenizer.vocab_size()) {
        return InvalidField("tokens.ids",
                            absl::StrCat("token id ", id, " is outside of the ",
                                         parts_.tokenizer.vocab_size(), " of the vocabulary"));
      }
      prompt.push_back(static_cast<common::TokenId>(id));
    }
  } else {
    if (!IsValidUtf8(request.text())) return InvalidField("text", "it is not valid UTF-8");
    ASSIGN_OR_RETURN(prompt, parts_.tokenizer.Encode(request.text(), {.add_bos = true}));
  }
  if (prompt.empty()) return InvalidField("prompt", "it is empty");
  TurnSpec spec;
  spec.tenant = wrapped.tenant();
  ASSIGN_OR_RETURN(spec.sampling, SamplingFromProto(request.sampling()));
  spec.arrival = absl::Now();
  spec.deadline = spec.arrival + common::RemainingTime(context, absl::ZeroDuration(), kTurnCap);
  spec.render = [prompt = std::move(prompt)](const kvstore::SessionRecord&) { return prompt; };
  return spec;
}

template <typename Response>
ServerWriteReactor<Response>* Server::Start(TurnSpec spec, TurnStreamInfo info) {
  absl::StatusOr<IncrementalDecoder> decoder =
      IncrementalDecoder::Create(parts_.tokenizer, {.stops = spec.sampling.stop});
  if (!decoder.ok()) {
    return new FailedStream<Response>(InvalidField("sampling.stop", decoder.status().message()));
  }
  info.logprobs = spec.sampling.logprobs.has_value();
  auto stream = std::make_shared<TurnStream<Response>>(std::move(info), parts_.tokenizer,
                                                       *std::move(decoder));
  absl::StatusOr<TurnTicket> ticket = parts_.engine.Submit(std::move(spec), stream);
  if (!ticket.ok()) return new FailedStream<Response>(ticket.status());
  ServerWriteReactor<Response>* reactor = stream->MakeReactor();
  stream->Bind(parts_.engine, *ticket);
  return reactor;
}

ServerWriteReactor<v1::RunTurnResponse>* Server::RunTurn(CallbackServerContext* context,
                                                         const v1::RunTurnRequest* request) {
  absl::StatusOr<TurnSpec> spec = SpecOf(*context, *request);
  if (!spec.ok()) return new FailedStream<v1::RunTurnResponse>(spec.status());
  return Start<v1::RunTurnResponse>(*std::move(spec), {.session_id = request->session().id(),
                                                       .worker_id = options_.worker_id,
                                                       .request_id = request->turn().request_id(),
                                                       .model = options_.model_name});
}

ServerWriteReactor<v1::RunCompletionResponse>* Server::RunCompletion(
    CallbackServerContext* context, const v1::RunCompletionRequest* request) {
  absl::StatusOr<TurnSpec> spec = SpecOf(*context, *request);
  if (!spec.ok()) return new FailedStream<v1::RunCompletionResponse>(spec.status());
  return Start<v1::RunCompletionResponse>(
      *std::move(spec), {.worker_id = options_.worker_id, .model = options_.model_name});
}

ServerUnaryReactor* Server::Tokenize(CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) {
  return OnPool(context, [this, request, response]() -> absl::Status {
    if (!IsValidUtf8(request->text())) return InvalidField("text", "it is not valid UTF-8");
    ASSIGN_OR_RETURN(const auto ids, parts_.tokenizer.Encode(request->text()));
    for (const common::TokenId id : ids) response->add_token_ids(static_cast<uint32_t>(id));
    return absl::OkStatus();
  });
}

ServerUnaryReactor* Server::Detokenize(CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) {
  return OnPool(context, [this, request, response]() -> absl::Status {
    for (const uint32_t id : request->token_ids()) {
      if (id >= parts_.tokenizer.vocab_size()) {
        return InvalidField("token_ids",
                            absl::StrCat("token id ", id, " is outside of the ",
                                         parts_.tokenizer.vocab_size(), " of the vocabulary"));
      }
      const absl::string_view bytes =
          parts_.tokenizer.TokenToBytes(static_cast<common::TokenId>(id), /*show_control=*/true);
      response->mutable_text()->append(bytes.data(), bytes.size());
    }
    return absl::OkStatus();
  });
}

void Server::FillModel(chat::v1::Model* out) const {
  const ModelConfig& config = parts_.ranks.config();
  out->set_id(options_.model_name);
  out->set_architecture(config.architecture);
  out->set_context_tokens(static_cast<uint64_t>(parts_.engine.context_tokens()));
  out->set_vocabulary_size(static_cast<uint64_t>(config.vocab));
  out->set_kv_bytes_per_token(parts_.ranks.pool().shape().token_bytes());
  out->set_fingerprint(config.fingerprint);
}

void Server::FillTiers(v1::GetInfoResponse* out) const {
  const kvstore::KvBlockPool& pool = parts_.ranks.pool();
  const uint64_t block_bytes = pool.resident_block_bytes();
  v1::TierUsage* device = out->add_tiers();
  device->set_place(types::v1::PLACE_DEVICE);
  device->set_used_bytes((pool.num_blocks() - pool.free_blocks()) * block_bytes);
  device->set_capacity_bytes(pool.num_blocks() * block_bytes);
  if (parts_.store == nullptr) return;
  const auto usage = parts_.store->usage();
  for (const auto place : {kvstore::Place::kHost, kvstore::Place::kDisk, kvstore::Place::kRemote}) {
    v1::TierUsage* tier = out->add_tiers();
    tier->set_place(static_cast<types::v1::Place>(static_cast<int>(place) + 1));
    tier->set_used_bytes(usage[static_cast<size_t>(place)].used_bytes);
    tier->set_capacity_bytes(usage[static_cast<size_t>(place)].capacity_bytes);
  }
}

ServerUnaryReactor* Server::GetInfo(CallbackServerContext* context, const v1::GetInfoRequest*,
                                    v1::GetInfoResponse* response) {
  ServerUnaryReactor* reactor = context->DefaultReactor();
  // Routers use who answers: not this worker while some of its ranks are away.
  if (const absl::Status whole = parts_.ranks.whole(); !whole.ok()) {
    reactor->Finish(common::ToGrpc(MakeError(Reason::kWorkerLost, whole.message())));
    return reactor;
  }
  const EngineLoad load = parts_.engine.load();
  const SessionCache::Counts counts = parts_.sessions.counts();
  response->set_worker_id(options_.worker_id);
  FillModel(response->mutable_model());
  response->set_draining(draining_);
  response->set_running(static_cast<uint32_t>(load.running));
  response->set_waiting(static_cast<uint32_t>(load.waiting));
  response->set_max_queue(static_cast<uint32_t>(options_.max_queue));
  response->set_sessions(static_cast<uint32_t>(counts.active + counts.idle));
  FillTiers(response);
  response->set_backend(parts_.ranks.backend_name());
  response->set_tp_size(static_cast<uint32_t>(parts_.ranks.size()));
  response->set_version(common::kVersion);
  response->set_instance_id(instance_id_);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

ServerWriteReactor<v1::ReportSessionsResponse>* Server::ReportSessions(
    CallbackServerContext*, const v1::ReportSessionsRequest* request) {
  auto* stream = new ReportStream;  // deletes itself when the call is over
  const bool taken = io_.Submit([this, stream, request = *request] {
    absl::StatusOr<std::vector<SessionInfo>> sessions = parts_.sessions.List();
    if (!sessions.ok()) return stream->Fail(sessions.status());
    stream->Send(
        SessionReports(*std::move(sessions), request, options_.model_name, options_.worker_id));
  });
  if (!taken) stream->Fail(IsStopping());
  return stream;
}

ServerUnaryReactor* Server::CreateSession(CallbackServerContext* context,
                                          const v1::CreateSessionRequest* request,
                                          v1::CreateSessionResponse* response) {
  return SessionCall(context, response, [this, request]() -> absl::StatusOr<SessionInfo> {
    RETURN_IF_ERROR(CheckModel(request->create().model()));
    int64_t ttl_seconds = DefaultTtl();
    if (request->create().has_ttl()) {
      ASSIGN_OR_RETURN(ttl_seconds, TtlFromProto(request->create().ttl()));
    }
    return parts_.sessions.Create({.ref = RefFromProto(request->session()),
                                   .tenant = request->tenant(),
                                   .cache_namespace = request->create().cache_namespace(),
                                   .ttl_seconds = ttl_seconds});
  });
}

ServerUnaryReactor* Server::GetSession(CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::GetSessionResponse* response) {
  return SessionCall(context, response, [this, request] {
    return parts_.sessions.Get(RefFromProto(request->session()));
  });
}

ServerUnaryReactor* Server::UpdateSession(CallbackServerContext* context,
                                          const v1::UpdateSessionRequest* request,
                                          v1::UpdateSessionResponse* response) {
  return SessionCall(context, response, [this, request]() -> absl::StatusOr<SessionInfo> {
    ASSIGN_OR_RETURN(const int64_t ttl_seconds, TtlFromProto(request->update().ttl()));
    return parts_.sessions.SetTtl(RefFromProto(request->session()), ttl_seconds);
  });
}

ServerUnaryReactor* Server::ForgetSession(CallbackServerContext* context,
                                          const v1::ForgetSessionRequest* request,
                                          v1::ForgetSessionResponse*) {
  return OnPool(context, [this, request] {
    return parts_.sessions.Delete(RefFromProto(request->session()));
  });
}

ServerUnaryReactor* Server::ForkSession(CallbackServerContext* context,
                                        const v1::ForkSessionRequest* request,
                                        v1::ForkSessionResponse* response) {
  return SessionCall(context, response, [this, request] {
    return parts_.sessions.Fork(
        RefFromProto(request->session()), RefFromProto(request->new_session()),
        request->has_at_turn() ? std::optional<uint64_t>(request->at_turn()) : std::nullopt);
  });
}

ServerUnaryReactor* Server::RewindSession(CallbackServerContext* context,
                                          const v1::RewindSessionRequest* request,
                                          v1::RewindSessionResponse* response) {
  return SessionCall(context, response, [this, request] {
    return parts_.sessions.Rewind(RefFromProto(request->session()), request->to_turn());
  });
}

ServerUnaryReactor* Server::ParkSession(CallbackServerContext* context,
                                        const v1::ParkSessionRequest* request,
                                        v1::ParkSessionResponse* response) {
  return SessionCall(context, response, [this, request] {
    return parts_.sessions.Park(RefFromProto(request->session()));
  });
}

ServerUnaryReactor* Server::PrepareSession(CallbackServerContext* context,
                                           const v1::PrepareSessionRequest* request,
                                           v1::PrepareSessionResponse*) {
  return OnPool(context, [this, request] {
    return parts_.sessions.Resume(RefFromProto(request->session()));
  });
}

ServerUnaryReactor* Server::Drain(CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse* response) {
  return OnPool(context, [this, response] {
    response->set_parked_sessions(static_cast<uint32_t>(DrainAndPark()));
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::Create(const ServerOptions& options,
                                                                   const ServerParts& parts) {
  auto server = std::make_unique<Server>(options, parts);
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace loopserve::worker
