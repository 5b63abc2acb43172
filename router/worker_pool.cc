#include "router/worker_pool.h"

#include <grpcpp/client_context.h>

#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc.h"
#include "common/thread.h"
#include "router/session_report.h"

namespace loopserve::router {
namespace {

using common::WorkerId;

// Logprobs of a long answer in one message need more than gRPC's default.
constexpr int kMaxMessageBytes = 64 << 20;

// One check in flight: GetInfo, and ReportSessions behind it when the worker is new.
struct Check {
  grpc::ClientContext info_context;
  worker::v1::GetInfoRequest info_request;
  worker::v1::GetInfoResponse info;
  grpc::ClientContext report_context;
  size_t sessions = 0;
};

struct Peer {
  WorkerId id;
  std::unique_ptr<WorkerPool::Stub> stub;
  std::shared_ptr<Check> check;  // shared with the callback of the call in flight; null: none
  worker::v1::GetInfoResponse info;
  bool answered = false;
  absl::string_view warned_of;  // what failed last, and has not worked since
};

class GrpcWorkerPool final : public WorkerPool {
 public:
  GrpcWorkerPool(const std::vector<WorkerAddress>& workers, const Options& options,
                 WorkerTable& table, SessionDirectory& directory, RouterMetrics& metrics,
                 common::Logger& log, std::function<void()> on_change)
      : options_(options),
        table_(table),
        directory_(directory),
        metrics_(metrics),
        log_(log),
        on_change_(std::move(on_change)) {
    for (const WorkerAddress& worker : workers) {
      Peer& peer = peers_[worker.id];
      peer.id = worker.id;
      peer.stub = worker::v1::Worker::NewStub(common::MakeChannel(worker.target, kMaxMessageBytes));
    }
    thread_ = common::NamedThread("worker-checks", [this](std::stop_token stop) { Loop(stop); });
  }

  ~GrpcWorkerPool() override {
    thread_.request_stop();
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
      for (auto& [id, peer] : peers_) {
        if (peer.check == nullptr) continue;
        peer.check->info_context.TryCancel();
        peer.check->report_context.TryCancel();
      }
    }
    thread_.join();
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &GrpcWorkerPool::Idle));
  }

  Stub* stub(const WorkerId& worker) override {
    const auto it = peers_.find(worker);
    return it == peers_.end() ? nullptr : it->second.stub.get();
  }

  std::optional<worker::v1::GetInfoResponse> info(const WorkerId& worker) const override {
    absl::MutexLock lock(&mutex_);
    const auto it = peers_.find(worker);
    if (it == peers_.end() || !it->second.answered) return std::nullopt;
    return it->second.info;
  }

 private:
  bool Stopping() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_; }
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return in_flight_ == 0; }

  void Loop(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      for (auto& [id, peer] : peers_) StartCheck(peer);
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &GrpcWorkerPool::Stopping),
                              options_.check_interval);
    }
  }

  void StartCheck(Peer& peer) {
    auto check = std::make_shared<Check>();
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_ || peer.check != nullptr) return;
      peer.check = check;
      ++in_flight_;
    }
    common::SetDeadline(check->info_context, options_.check_timeout);
    peer.stub->async()->GetInfo(
        &check->info_context, &check->info_request, &check->info,
        [this, &peer, check](const grpc::Status& status) { OnInfo(peer, *check, status); });
  }

  void OnInfo(Peer& peer, Check& check, const grpc::Status& status) {
    if (!status.ok()) return EndWithError(peer, "check", status);
    // The sessions' records know their owners by these names.
    if (check.info.worker_id() != peer.id.value()) {
      return EndWithError(peer, "its name",
                          {grpc::StatusCode::FAILED_PRECONDITION,
                           absl::StrCat("it calls itself '", check.info.worker_id(),
                                        "': start it with --id=", peer.id.value(),
                                        " or name it so in the router's --workers")});
    }
    {
      absl::MutexLock lock(&mutex_);
      peer.info = check.info;
      peer.answered = true;
    }
    metrics_.AddModel(check.info.model().id());
    const bool is_new = table_.OnInfo(peer.id, {.instance_id = check.info.instance_id(),
                                                .model = check.info.model().id(),
                                                .draining = check.info.draining()});
    if (!is_new) {
      peer.warned_of = "";
      return End(peer);
    }
    std::shared_ptr<Check> self;
    {
      absl::MutexLock lock(&mutex_);
      self = peer.check;
      if (stopping_) self->report_context.TryCancel();
    }
    common::SetDeadline(check.report_context, options_.report_timeout);
    ReadSessionReports(
        *peer.stub, &check.report_context, {},
        [this, &peer, self](const worker::v1::ReportSessionsResponse& rows) {
          OnRows(peer, *self, rows);
        },
        [this, &peer, self](const grpc::Status& result) { OnReported(peer, *self, result); });
  }

  void OnRows(const Peer& peer, Check& check, const worker::v1::ReportSessionsResponse& rows) {
    std::vector<SessionSighting> sightings;
    for (const worker::v1::SessionReport& report : rows.sessions()) {
      if (report.session().state() == session::v1::SESSION_STATE_EXPIRED) continue;
      sightings.push_back({common::SessionId(report.session().id()), common::Epoch(report.epoch()),
                           report.owned(), LifetimeOf(report.session())});
    }
    directory_.Learn(peer.id, sightings);
    check.sessions += sightings.size();
  }

  void OnReported(Peer& peer, const Check& check, const grpc::Status& status) {
    if (!status.ok()) return EndWithError(peer, "report of its sessions", status);
    peer.warned_of = "";
    table_.OnLearned(peer.id, check.info.instance_id());
    log_.Info("worker up", {{"worker", peer.id.value()},
                            {"model", check.info.model().id()},
                            {"instance", check.info.instance_id()},
                            {"sessions", check.sessions}});
    End(peer);
  }

  void EndWithError(Peer& peer, absl::string_view what, const grpc::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return EndLocked(peer);
    }
    table_.OnCheckFailed(peer.id, status.error_message());
    if (WorkerSeries* series = metrics_.ForWorker(peer.id); series != nullptr) {
      series->errors->Increment();
    }
    // A warning once, not at every check of a worker that stays away.
    const bool known = std::exchange(peer.warned_of, what) == what;
    log_.Log(known ? common::LogLevel::kDebug : common::LogLevel::kWarning, "worker cannot be used",
             {{"worker", peer.id.value()}, {"failed", what}, {"error", status.error_message()}});
    End(peer);
  }

  void End(Peer& peer) {
    on_change_();
    absl::MutexLock lock(&mutex_);
    EndLocked(peer);
  }
  void EndLocked(Peer& peer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    peer.check = nullptr;
    --in_flight_;
  }

  const Options options_;
  WorkerTable& table_;
  SessionDirectory& directory_;
  RouterMetrics& metrics_;
  common::Logger& log_;
  const std::function<void()> on_change_;

  mutable absl::Mutex mutex_;       // guards the checks and answers of the peers, too
  std::map<WorkerId, Peer> peers_;  // fixed after construction
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread thread_;
};

}  // namespace

Lifetime LifetimeOf(const session::v1::Session& session) {
  if (!session.has_use_time()) return {};
  const auto span = [](const auto& value) {  // a Timestamp since 1970, or a Duration
    return absl::Seconds(value.seconds()) + absl::Nanoseconds(value.nanos());
  };
  return {.used = absl::UnixEpoch() + span(session.use_time()), .ttl = span(session.ttl())};
}

std::unique_ptr<WorkerPool> WorkerPool::Create(const std::vector<WorkerAddress>& workers,
                                               const Options& options, WorkerTable& table,
                                               SessionDirectory& directory, RouterMetrics& metrics,
                                               common::Logger& log,
                                               std::function<void()> on_change) {
  return std::make_unique<GrpcWorkerPool>(workers, options, table, directory, metrics, log,
                                          std::move(on_change));
}

}  // namespace loopserve::router
