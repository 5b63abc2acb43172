#include "kvstore/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/rpc.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "kvstore/block_format.h"
#include "kvstore/file.h"
#include "kvstore/tier/remote.h"
#include "loopserve/kvstore/v1/kvstore.grpc.pb.h"

namespace loopserve::kvstore {
namespace {

using common::InvalidField;
using grpc::CallbackServerContext;
using grpc::ServerReadReactor;
using grpc::ServerUnaryReactor;
using grpc::ServerWriteReactor;

constexpr size_t kMaxSessionIdBytes = 256;
constexpr char kServiceName[] = "loopserve.kvstore.v1.KvStore";
constexpr std::array kOps = {"put",         "get",         "lookup",        "erase",        "usage",
                             "put_session", "get_session", "erase_session", "list_sessions"};
constexpr std::array kCodes = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// Calls by operation and code, and how long they took; all series exist from the start.
class OpMetrics {
 public:
  explicit OpMetrics(common::Metrics& metrics) {
    for (size_t op = 0; op < kOps.size(); ++op) {
      seconds_[op] =
          &metrics.histogram("loopserve_kvstore_op_duration_seconds", "Time to serve a call.",
                             {{"op", kOps[op]}}, common::buckets::Steps());
      for (size_t code = 0; code < kCodes.size(); ++code) {
        calls_[op][code] =
            &metrics.counter("loopserve_kvstore_ops_total", "Calls that ended, by gRPC code.",
                             {{"op", kOps[op]}, {"code", kCodes[code]}});
      }
    }
  }
  void Count(absl::string_view op, const absl::Status& status, absl::Time start) {
    const auto index = static_cast<size_t>(std::find(kOps.begin(), kOps.end(), op) - kOps.begin());
    const auto code = static_cast<size_t>(status.raw_code());
    calls_[index][code < kCodes.size() ? code : 2]->Increment();
    seconds_[index]->Observe(absl::ToDoubleSeconds(absl::Now() - start));
  }

 private:
  std::array<common::Histogram*, kOps.size()> seconds_;
  std::array<std::array<common::Counter*, kCodes.size()>, kOps.size()> calls_;
};

absl::StatusOr<BlockKey> BlockKeyOf(absl::string_view field, const std::string& bytes) {
  BlockKey key;
  if (bytes.size() != sizeof key.hash) {
    return InvalidField(field, absl::StrCat("a block key has 16 bytes, not ", bytes.size()));
  }
  std::memcpy(&key.hash, bytes.data(), sizeof key.hash);
  return key;
}

absl::StatusOr<PlaneKey> PlaneKeyOf(const v1::PlaneKey& proto) {
  PlaneKey key;
  ASSIGN_OR_RETURN(key.block, BlockKeyOf("key.block", proto.block()));
  if (proto.plane() > 255) return InvalidField("key.plane", absl::StrCat(proto.plane()));
  key.plane = static_cast<uint8_t>(proto.plane());
  return key;
}

absl::Status CheckSessionId(absl::string_view field, const std::string& id) {
  if (!id.empty() && id.size() <= kMaxSessionIdBytes) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("a session id has 1 ... ", kMaxSessionIdBytes,
                                          " bytes, not ", id.size()));
}

absl::Status CheckStorable(const PlaneKey& key, ByteSpan bytes) {
  const absl::StatusOr<BlockRecord> record = ParseBlockRecord(bytes);
  if (!record.ok()) return InvalidField("chunk", record.status().message());
  if (record->header.key != key.block || record->header.plane != key.plane) {
    return InvalidField("key", "the record is of another block");
  }
  return absl::OkStatus();
}

class Server;

// Collects the chunks of one Put and stores them when the last has come.
class PutCall final : public ServerReadReactor<v1::PutRequest> {
 public:
  PutCall(Server& server) : server_(server) { ReadNext(); }
  void OnReadDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  void ReadNext();
  absl::Status Take();
  void End(const absl::Status& status);

  Server& server_;
  const absl::Time start_ = absl::Now();
  // gRPC runs the callbacks of a call one after the other, on any threads. This says so to those
  // who cannot see its inside: the thread sanitizer.
  std::atomic<bool> handed_over_{false};
  v1::PutRequest request_;
  bool first_ = true;
  PlaneKey key_;
  uint64_t total_ = 0;
  std::vector<std::byte> bytes_;
};

// Reads one entry on the pool, then sends it in chunks.
class GetCall final : public ServerWriteReactor<v1::GetResponse> {
 public:
  GetCall(Server& server, const v1::GetRequest& request);
  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  void SendNext();
  void End(const absl::Status& status);

  Server& server_;
  const absl::Time start_ = absl::Now();
  Entry entry_;
  size_t sent_ = 0;
  v1::GetResponse response_;
};

class Server final : public KvServer, public v1::KvStore::CallbackService {
 public:
  Server(Chain& tiers, SessionLog& sessions, common::Metrics& metrics)
      : tiers_(tiers), sessions_(sessions), metrics_(metrics), pool_("kv-io", 4) {}
  ~Server() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Listen(const std::string& address);
  int port() const override { return port_; }
  void BeginDrain() override {
    server_->GetHealthCheckService()->SetServingStatus(kServiceName, false);
  }
  void Shutdown(absl::Duration timeout) override;

  ServerReadReactor<v1::PutRequest>* Put(CallbackServerContext*, v1::PutResponse*) override {
    return new PutCall(*this);
  }
  ServerWriteReactor<v1::GetResponse>* Get(CallbackServerContext*,
                                           const v1::GetRequest* request) override {
    return new GetCall(*this, *request);
  }
  ServerUnaryReactor* Lookup(CallbackServerContext* context, const v1::LookupRequest* request,
                             v1::LookupResponse* response) override;
  ServerUnaryReactor* Erase(CallbackServerContext* context, const v1::EraseRequest* request,
                            v1::EraseResponse* response) override;
  ServerUnaryReactor* Usage(CallbackServerContext* context, const v1::UsageRequest* request,
                            v1::UsageResponse* response) override;
  ServerUnaryReactor* PutSession(CallbackServerContext* context,
                                 const v1::PutSessionRequest* request,
                                 v1::PutSessionResponse* response) override;
  ServerUnaryReactor* GetSession(CallbackServerContext* context,
                                 const v1::GetSessionRequest* request,
                                 v1::GetSessionResponse* response) override;
  ServerUnaryReactor* EraseSession(CallbackServerContext* context,
                                   const v1::EraseSessionRequest* request,
                                   v1::EraseSessionResponse* response) override;
  ServerUnaryReactor* ListSessions(CallbackServerContext* context,
                                   const v1::ListSessionsRequest* request,
                                   v1::ListSessionsResponse* response) override;

  Chain& tiers() { return tiers_; }
  OpMetrics& metrics() { return metrics_; }
  // False when the server is stopping; the work is then dropped.
  bool OnPool(absl::AnyInvocable<void()> work) { return pool_.Submit(std::move(work)); }

 private:
  // Answers a unary call with what `work` returns, on the pool.
  ServerUnaryReactor* Answer(CallbackServerContext* context, absl::string_view op,
                             std::function<absl::Status()> work);

  Chain& tiers_;
  SessionLog& sessions_;
  OpMetrics metrics_;
  int port_ = 0;
  common::ThreadPool pool_;
  std::unique_ptr<grpc::Server> server_;
};

absl::Status Stopping() { return absl::UnavailableError("the service is stopping"); }

void PutCall::ReadNext() {
  handed_over_.store(true, std::memory_order_release);
  StartRead(&request_);
}

void PutCall::OnReadDone(bool ok) {
  handed_over_.load(std::memory_order_acquire);
  if (ok) {
    const absl::Status status = Take();
    if (!status.ok()) return End(status);
    ReadNext();
    return;
  }
  if (first_ || bytes_.size() != total_) {
    return End(InvalidField("total_bytes", absl::StrCat(bytes_.size(), " bytes came of ", total_)));
  }
  const bool taken = server_.OnPool([this] {
    absl::Status status = CheckStorable(key_, bytes_);
    if (status.ok()) status = OwnTrouble(server_.tiers().Put(key_, Share(std::move(bytes_))));
    End(status);
  });
  if (!taken) End(Stopping());
}

absl::Status PutCall::Take() {
  if (first_) {
    first_ = false;
    ASSIGN_OR_RETURN(key_, PlaneKeyOf(request_.key()));
    total_ = request_.total_bytes();
    if (total_ == 0 || total_ > kMaxEntryBytes) {
      return InvalidField("total_bytes",
                          absl::StrCat(total_, " is outside of 1 ... ", uint64_t{kMaxEntryBytes}));
    }
  }
  const std::string& chunk = request_.chunk();
  if (chunk.size() > kMaxChunkBytes || bytes_.size() + chunk.size() > total_) {
    return InvalidField("chunk", absl::StrCat("a chunk of ", chunk.size(), " bytes is too long"));
  }
  const auto data = std::as_bytes(std::span(chunk.data(), chunk.size()));
  if (common::Crc32c(data) != request_.crc32c()) {
    return InvalidField("crc32c", "the chunk's checksum differs");
  }
  bytes_.insert(bytes_.end(), data.begin(), data.end());
  return absl::OkStatus();
}

void PutCall::End(const absl::Status& status) {
  server_.metrics().Count("put", status, start_);
  Finish(common::ToGrpc(status));
}

GetCall::GetCall(Server& server, const v1::GetRequest& request) : server_(server) {
  const absl::StatusOr<PlaneKey> key = PlaneKeyOf(request.key());
  if (!key.ok()) {
    End(key.status());
    return;
  }
  const bool taken = server_.OnPool([this, key = *key] {
    absl::StatusOr<Entry> entry = server_.tiers().Get(key);
    if (!entry.ok()) return End(OwnTrouble(entry.status()));
    entry_ = *std::move(entry);
    response_.set_total_bytes(entry_.bytes->size());
    response_.set_place(static_cast<types::v1::Place>(static_cast<int>(entry_.place) + 1));
    SendNext();
  });
  if (!taken) End(Stopping());
}

void GetCall::SendNext() {
  const size_t n = std::min(kMaxChunkBytes, entry_.bytes->size() - sent_);
  const ByteSpan chunk = ByteSpan(*entry_.bytes).subspan(sent_, n);
  response_.set_chunk(chunk.data(), chunk.size());
  response_.set_crc32c(common::Crc32c(chunk));
  sent_ += n;
  StartWrite(&response_);
}

void GetCall::OnWriteDone(bool ok) {
  if (!ok) return End(absl::CancelledError("the caller left"));
  if (sent_ == entry_.bytes->size()) return End(absl::OkStatus());
  response_.Clear();
  SendNext();
}

void GetCall::End(const absl::Status& status) {
  server_.metrics().Count("get", status, start_);
  Finish(common::ToGrpc(status));
}

absl::Status Server::Listen(const std::string& address) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.SetMaxReceiveMessageSize(kMaxRecordBytes);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address, ": is the port in use? Choose another with --listen"));
  }
  server_->GetHealthCheckService()->SetServingStatus("", true);
  server_->GetHealthCheckService()->SetServingStatus(kServiceName, true);
  return absl::OkStatus();
}

void Server::Shutdown(absl::Duration timeout) {
  if (server_ == nullptr) return;
  server_->Shutdown(absl::ToChronoTime(absl::Now() + timeout));
  pool_.Stop();
  server_->Wait();
  server_ = nullptr;
}

ServerUnaryReactor* Server::Answer(CallbackServerContext* context, absl::string_view op,
                                   std::function<absl::Status()> work) {
  ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Time start = absl::Now();
  const bool taken = OnPool([this, context, reactor, op, start, work = std::move(work)] {
    const absl::Status status =
        context->IsCancelled() ? absl::CancelledError("the caller left") : OwnTrouble(work());
    metrics_.Count(op, status, start);
    reactor->Finish(common::ToGrpc(status));
  });
  if (!taken) {
    metrics_.Count(op, Stopping(), start);
    reactor->Finish(common::ToGrpc(Stopping()));
  }
  return reactor;
}

ServerUnaryReactor* Server::Lookup(CallbackServerContext* context, const v1::LookupRequest* request,
                                   v1::LookupResponse* response) {
  return Answer(context, "lookup", [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const BlockKey root, BlockKeyOf("root", request->root()));
    if (request->block_tokens() == 0 || request->block_tokens() > 4096) {
      return InvalidField("block_tokens", absl::StrCat(request->block_tokens()));
    }
    const std::vector<common::TokenId> tokens(request->tokens().begin(), request->tokens().end());
    ASSIGN_OR_RETURN(const int64_t found,
                     tiers_.Lookup(root, tokens, static_cast<int>(request->block_tokens())));
    response->set_tokens(static_cast<uint64_t>(found));
    return absl::OkStatus();
  });
}

ServerUnaryReactor* Server::Erase(CallbackServerContext* context, const v1::EraseRequest* request,
                                  v1::EraseResponse*) {
  return Answer(context, "erase", [this, request]() -> absl::Status {
    std::vector<PlaneKey> keys;
    for (const v1::PlaneKey& proto : request->keys()) {
      ASSIGN_OR_RETURN(keys.emplace_back(), PlaneKeyOf(proto));
    }
    return tiers_.Erase(keys).status();
  });
}

ServerUnaryReactor* Server::Usage(CallbackServerContext* context, const v1::UsageRequest*,
                                  v1::UsageResponse* response) {
  return Answer(context, "usage", [this, response]() -> absl::Status {
    const UsageByPlace usage = tiers_.usage_by_place();
    for (const Place place : {Place::kHost, Place::kDisk}) {
      const kvstore::Usage& from = usage[static_cast<size_t>(place)];
      v1::UsageResponse::Tier* tier = response->add_tiers();
      tier->set_place(static_cast<types::v1::Place>(static_cast<int>(place) + 1));
      tier->set_used_bytes(from.used_bytes);
      tier->set_capacity_bytes(from.capacity_bytes);
      tier->set_entries(from.entries);
    }
    ASSIGN_OR_RETURN(const size_t sessions, sessions_.Count());
    response->set_sessions(sessions);
    return absl::OkStatus();
  });
}

ServerUnaryReactor* Server::PutSession(CallbackServerContext* context,
                                       const v1::PutSessionRequest* request,
                                       v1::PutSessionResponse*) {
  return Answer(context, "put_session", [this, request]() -> absl::Status {
    const std::string& bytes = request->record();
    const absl::StatusOr<SessionRecord> record =
        DecodeSessionRecord(std::as_bytes(std::span(bytes.data(), bytes.size())));
    if (!record.ok()) return InvalidField("record", record.status().message());
    RETURN_IF_ERROR(CheckSessionId("record", record->id.value()));
    return sessions_.Put(*record);
  });
}

ServerUnaryReactor* Server::GetSession(CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::GetSessionResponse* response) {
  return Answer(context, "get_session", [this, request, response]() -> absl::Status {
    RETURN_IF_ERROR(CheckSessionId("session_id", request->session_id()));
    ASSIGN_OR_RETURN(const SessionRecord record,
                     sessions_.Get(common::SessionId(request->session_id())));
    const std::vector<std::byte> bytes = EncodeSessionRecord(record);
    response->set_record(bytes.data(), bytes.size());
    return absl::OkStatus();
  });
}

ServerUnaryReactor* Server::EraseSession(CallbackServerContext* context,
                                         const v1::EraseSessionRequest* request,
                                         v1::EraseSessionResponse*) {
  return Answer(context, "erase_session", [this, request]() -> absl::Status {
    RETURN_IF_ERROR(CheckSessionId("session.id", request->session().id()));
    return sessions_.Erase(
        {common::SessionId(request->session().id()), common::Epoch(request->session().epoch())});
  });
}

ServerUnaryReactor* Server::ListSessions(CallbackServerContext* context,
                                         const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) {
  return Answer(context, "list_sessions", [this, request, response]() -> absl::Status {
    // A page token is the last id of the page before it.
    const common::SessionId after(request->page_token());
    const size_t limit =
        std::clamp<size_t>(request->page_size() == 0 ? 100 : request->page_size(), 1, 1000);
    ASSIGN_OR_RETURN(const std::vector<SessionLog::Summary> page, sessions_.Page(after, limit + 1));
    for (const SessionLog::Summary& summary : page) {
      if (static_cast<size_t>(response->sessions_size()) == limit) {
        response->set_next_page_token(response->sessions().rbegin()->session().id());
        break;
      }
      v1::ListSessionsResponse::Summary* out = response->add_sessions();
      out->mutable_session()->set_id(summary.id.value());
      out->mutable_session()->set_epoch(summary.epoch.value());
      out->set_tokens(summary.tokens);
      out->set_turns(summary.turns);
      out->set_used_unix_us(summary.used_unix_us);
      out->set_ttl_seconds(summary.ttl_seconds);
      out->set_tenant(summary.tenant);
      out->set_owner(summary.owner);
    }
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvServer>> KvServer::Create(const std::string& listen, Chain& tiers,
                                                           SessionLog& sessions,
                                                           common::Metrics& metrics) {
  auto server = std::make_unique<Server>(tiers, sessions, metrics);
  RETURN_IF_ERROR(server->Listen(listen));
  return server;
}

}  // namespace loopserve::kvstore
