#include "router/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/rpc.h"
#include "common/status_macros.h"
#include "router/admin_service.h"
#include "router/admission.h"
#include "router/chat_service.h"
#include "router/router_metrics.h"
#include "router/routing.h"
#include "router/session_service.h"
#include "router/turn_proxy.h"
#include "router/worker_pool.h"

namespace loopserve::router {
namespace {

constexpr absl::string_view kHealthNames[] = {"loopserve.chat.v1.Chat",
                                              "loopserve.session.v1.Sessions"};
constexpr char kAdminName[] = "loopserve.admin.v1.Admin";
constexpr absl::Duration kGoodbye = absl::Milliseconds(500);
constexpr int kMaxConcurrentStreams = 16384;

// Keepalive as clients of ours send it is welcome; a connection ends now and then, so that new
// routers behind one address get their share.
void SetArguments(grpc::ServerBuilder& builder, const RouterConfig& config) {
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, 30 * 60 * 1000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                             static_cast<int>(absl::ToInt64Milliseconds(config.max_turn_time)));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxConcurrentStreams);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Beyond our own limit, so that what is only somewhat too large gets our own error.
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.max_message_bytes) + (4 << 20));
}

absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(grpc::ServerBuilder& builder,
                                                     const std::string& address, int* port) {
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), port);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || *port == 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address, ": is another process there? Try port 0 for any free one"));
  }
  return server;
}

class GrpcRouterServer final : public RouterServer {
 public:
  GrpcRouterServer(const RouterConfig& config, const std::vector<WorkerAddress>& workers,
                   std::unique_ptr<SessionDirectory> directory, common::Metrics& metrics,
                   common::Logger& log, const common::Clock& clock)
      : config_(config),
        log_(log),
        table_(workers),
        directory_(std::move(directory)),
        metrics_(metrics, Ids(workers)),
        admission_({.max_inflight = config.MaxInflight(),
                    .max_queue = config.max_queue,
                    .max_queue_wait = config.max_queue_wait},
                   clock),
        routing_(*directory_, table_, metrics_, log, clock, config.learn_timeout) {
    metrics.OnScrape([shown = shown_] { shown->Refresh(); });
    shown_->Set([this] { RefreshGauges(); });
    pool_ = WorkerPool::Create(workers, {.check_interval = config.check_interval}, table_,
                               *directory_, metrics_, log, [this] { OnCheck(); });
    proxy_ = TurnProxy::Create(
        {.max_turn_time = config.max_turn_time, .max_message_bytes = config.max_message_bytes},
        {routing_, table_, *pool_, admission_, busy_, gate_, metrics_, log});
    const WorkerCallDeps call{routing_, *pool_};
    chat_ = CreateChatService(
        {*proxy_, call, table_, gate_, static_cast<size_t>(config.max_message_bytes)});
    sessions_ = CreateSessionService(
        {call, table_, *directory_, gate_, static_cast<size_t>(config.max_message_bytes)});
    admin_ = CreateAdminService({table_, *pool_, *directory_, admission_, admin_gate_, log});
  }

  ~GrpcRouterServer() override {
    EndServers(absl::ZeroDuration());
    shown_->Set([] {});
  }

  absl::Status Start() {
    grpc::ServerBuilder builder;
    SetArguments(builder, config_);
    builder.RegisterService(chat_.get());
    builder.RegisterService(sessions_.get());
    ASSIGN_OR_RETURN(server_, Listen(builder, config_.listen, &port_));
    grpc::ServerBuilder admin_builder;
    SetArguments(admin_builder, config_);
    admin_builder.RegisterService(admin_.get());
    ASSIGN_OR_RETURN(admin_server_, Listen(admin_builder, config_.admin_listen, &admin_port_));
    started_ = true;
    UpdateHealth();
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  int admin_port() const override { return admin_port_; }
  const WorkerTable& workers() const override { return table_; }
  const SessionDirectory& directory() const override { return *directory_; }

  void Drain() override {
    if (std::exchange(drained_, true)) return;
    log_.Info("draining", {{"inflight", admission_.inflight()}, {"queued", admission_.queued()}});
    draining_ = true;
    UpdateHealth();
    absl::SleepFor(config_.drain_settle);
    const bool finished = gate_.Close(config_.drain_timeout);
    proxy_->OnShutdown();
    if (!finished) log_.Warning("drain timed out", {{"still_open", gate_.inside()}});
    // Open calls are only watches of the health by now, unless the time was up.
    EndServers(finished ? kGoodbye : absl::ZeroDuration());
  }

 private:
  // What a scrape calls; outlives the server, because the registry does.
  class Shown {
   public:
    void Set(std::function<void()> refresh) {
      absl::MutexLock lock(&mutex_);
      refresh_ = std::move(refresh);
    }
    void Refresh() {
      absl::MutexLock lock(&mutex_);
      if (refresh_) refresh_();
    }

   private:
    absl::Mutex mutex_;
    std::function<void()> refresh_ ABSL_GUARDED_BY(mutex_);
  };

  static std::vector<common::WorkerId> Ids(const std::vector<WorkerAddress>& workers) {
    std::vector<common::WorkerId> ids;
    for (const WorkerAddress& worker : workers) ids.push_back(worker.id);
    return ids;
  }

  void RefreshGauges() {
    const DirectoryCounts counts = directory_->counts();
    metrics_.directory_sessions().Set(static_cast<double>(counts.sessions));
    for (const WorkerRow& row : table_.Rows()) {
      WorkerSeries& series = *metrics_.ForWorker(row.view.id);
      series.up->Set(row.view.health == WorkerHealth::kReady ? 1 : 0);
      series.inflight->Set(row.view.inflight);
      const auto it = counts.by_worker.find(row.view.id);
      series.sessions->Set(it == counts.by_worker.end() ? 0 : static_cast<double>(it->second));
    }
  }

  // After every check of a worker; also the beat by which the directory is kept small.
  void OnCheck() {
    UpdateHealth();
    routing_.TrimDirectory(busy_.All());
  }

  void UpdateHealth() {
    if (!started_) return;
    // What was found last is said last.
    absl::MutexLock lock(&health_mutex_);
    // "" says that the process lives, and nothing of the workers: whoever restarts a router that
    // waits for its first worker takes away the only one who can tell the clients to come back.
    const bool ready = !draining_ && table_.AnyReady();
    for (grpc::Server* server : {server_.get(), admin_server_.get()}) {
      grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
      health->SetServingStatus("", true);
      for (const absl::string_view name : kHealthNames) {
        health->SetServingStatus(std::string(name), ready);
      }
    }
    // The operator's service is of use just when nothing else works.
    admin_server_->GetHealthCheckService()->SetServingStatus(kAdminName, !draining_);
  }

  void EndServers(absl::Duration grace) {
    started_ = false;
    const auto deadline = absl::ToChronoTime(absl::Now() + grace);
    if (server_ != nullptr) server_->Shutdown(deadline);
    if (admin_server_ != nullptr) admin_server_->Shutdown(deadline);
  }

  const RouterConfig config_;
  common::Logger& log_;
  const std::shared_ptr<Shown> shown_ = std::make_shared<Shown>();
  WorkerTable table_;
  std::unique_ptr<SessionDirectory> directory_;
  RouterMetrics metrics_;
  Admission admission_;
  BusySessions busy_;
  common::Gate gate_;
  common::Gate admin_gate_;
  Routing routing_;
  std::unique_ptr<grpc::Service> chat_;
  std::unique_ptr<grpc::Service> sessions_;
  std::unique_ptr<grpc::Service> admin_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::Server> admin_server_;
  int port_ = 0;
  int admin_port_ = 0;
  std::atomic<bool> started_ = false;
  std::atomic<bool> draining_ = false;
  absl::Mutex health_mutex_;
  bool drained_ = false;
  // Last, hence destroyed first: their threads call into everything above.
  std::unique_ptr<TurnProxy> proxy_;
  std::unique_ptr<WorkerPool> pool_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RouterServer>> RouterServer::Create(const RouterConfig& config,
                                                                   common::Metrics& metrics,
                                                                   common::Logger& log,
                                                                   const common::Clock& clock) {
  ASSIGN_OR_RETURN(const std::vector<WorkerAddress> workers, ParseWorkerList(config.workers));
  ASSIGN_OR_RETURN(
      std::unique_ptr<SessionDirectory> directory,
      CreateDirectory(config.directory, {.max_pins = static_cast<size_t>(config.max_sessions)}));
  grpc::EnableDefaultHealthCheckService(true);
  if (config.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto server = std::make_unique<GrpcRouterServer>(config, workers, std::move(directory), metrics,
                                                   log, clock);
  RETURN_IF_ERROR(server->Start());
  return server;
}

}  // namespace loopserve::router
