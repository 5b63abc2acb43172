#include "router/admin_service.h"

#include <grpcpp/client_context.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "common/rpc.h"
#include "common/version.h"
#include "loopserve/admin/v1/admin.pb.h"
#include "router/wire.h"

namespace loopserve::router {
namespace {

namespace pb = admin::v1;
namespace wk = worker::v1;
using common::WorkerId;

constexpr size_t kMaxMessageBytes = 1 << 20;

pb::WorkerState StateOf(WorkerHealth health) {
  switch (health) {
    case WorkerHealth::kReady:
      return pb::WORKER_STATE_READY;
    case WorkerHealth::kDraining:
      return pb::WORKER_STATE_DRAINING;
    case WorkerHealth::kDown:
      return pb::WORKER_STATE_DOWN;
  }
  return pb::WORKER_STATE_UNSPECIFIED;
}

absl::Status NoSuchWorker(const std::string& id) {
  return common::InvalidField("worker_id", absl::StrCat("there is no worker '", id, "'"));
}

struct DrainCall {
  grpc::ClientContext context;
  wk::DrainRequest request;
  wk::DrainResponse response;
};

class AdminService final : public RawService {
 public:
  explicit AdminService(const AdminServiceDeps& deps)
      : RawService("loopserve.admin.v1.Admin", deps.gate, kMaxMessageBytes), deps_(deps) {
    AddUnary<pb::GetClusterStateRequest>(
        "GetClusterState", [this](ExchangePtr call, const auto&) { GetClusterState(*call); });
    AddUnary<pb::ListWorkersRequest>("ListWorkers",
                                     [this](ExchangePtr call, const auto&) { ListWorkers(*call); });
    AddUnary<pb::DrainWorkerRequest>(
        "DrainWorker", [this](ExchangePtr call, const pb::DrainWorkerRequest& request) {
          DrainWorker(std::move(call), WorkerId(request.worker_id()));
        });
    AddUnary<pb::UndrainWorkerRequest>(
        "UndrainWorker", [this](ExchangePtr call, const pb::UndrainWorkerRequest& request) {
          UndrainWorker(*call, WorkerId(request.worker_id()));
        });
    AddUnary<pb::SetLogLevelRequest>(
        "SetLogLevel", [this](ExchangePtr call, const pb::SetLogLevelRequest& request) {
          SetLogLevel(*call, request.level());
        });
    AddUnary<pb::GetBuildInfoRequest>("GetBuildInfo", [](ExchangePtr call, const auto&) {
      pb::GetBuildInfoResponse response;
      response.set_version(common::kVersion);
      response.set_revision(common::kRevision);
      call->Reply(response);
    });
  }

 private:
  template <typename Response>
  void FillWorkers(Response& response) const {
    const DirectoryCounts counts = deps_.directory.counts();
    for (const WorkerRow& row : deps_.table.Rows()) {
      pb::WorkerStatus& status = *response.add_workers();
      status.set_worker_id(row.view.id.value());
      status.set_address(row.target);
      status.set_state(StateOf(row.view.health));
      status.set_inflight(static_cast<uint32_t>(row.view.inflight));
      const auto pinned = counts.by_worker.find(row.view.id);
      if (pinned != counts.by_worker.end()) {
        status.set_sessions(static_cast<uint32_t>(pinned->second));
      }
      if (auto info = deps_.pool.info(row.view.id)) *status.mutable_info() = *std::move(info);
      status.set_last_error(row.last_error);
    }
  }

  void GetClusterState(Exchange& call) const {
    pb::GetClusterStateResponse response;
    FillWorkers(response);
    response.set_sessions(deps_.directory.counts().sessions);
    response.set_inflight(static_cast<uint32_t>(deps_.admission.inflight()));
    response.set_queued(static_cast<uint32_t>(deps_.admission.queued()));
    call.Reply(response);
  }

  void ListWorkers(Exchange& call) const {
    pb::ListWorkersResponse response;
    FillWorkers(response);
    call.Reply(response);
  }

  // From now on nothing is placed there, even if the worker itself cannot be reached.
  void DrainWorker(ExchangePtr call, const WorkerId& worker) {
    if (!deps_.table.SetDraining(worker, true)) return call->Fail(NoSuchWorker(worker.value()));
    deps_.log.Info("worker drains", {{"worker", worker.value()}});
    auto drain = std::make_shared<DrainCall>();  // shared with the callback and the hook
    call->OnCancel([drain] { drain->context.TryCancel(); });
    common::SetDeadline(
        drain->context,
        common::RemainingTime(call->context(), absl::Milliseconds(50), deps_.drain_timeout));
    const std::string instance = deps_.table.OnDrainCall(worker);
    deps_.pool.stub(worker)->async()->Drain(
        &drain->context, &drain->request, &drain->response,
        [&table = deps_.table, call, drain, worker, instance](const grpc::Status& status) {
          if (!status.ok()) {
            table.OnDrainFailed(worker, instance);
            return call->Fail(common::FromGrpc(status));
          }
          pb::DrainWorkerResponse response;
          response.set_moved_sessions(drain->response.parked_sessions());
          call->Reply(response);
        });
  }

  // Takes back the wish. A worker that has begun to drain does not stop: it has parked its sessions
  // and serves again as a new process, without another call to here.
  void UndrainWorker(Exchange& call, const WorkerId& worker) {
    if (!deps_.table.SetDraining(worker, false)) return call.Fail(NoSuchWorker(worker.value()));
    for (const WorkerRow& row : deps_.table.Rows()) {
      if (row.view.id == worker && row.draining_itself) {
        return call.Fail(absl::FailedPreconditionError(
            "the worker has begun to drain; it takes work again once it has been restarted"));
      }
    }
    deps_.log.Info("worker drains no more", {{"worker", worker.value()}});
    call.Reply(pb::UndrainWorkerResponse());
  }

  void SetLogLevel(Exchange& call, const std::string& name) {
    const absl::StatusOr<common::LogLevel> level = common::ParseLogLevel(name);
    if (!level.ok()) return call.Fail(common::InvalidField("level", level.status().message()));
    deps_.log.SetLevel(*level);
    call.Reply(pb::SetLogLevelResponse());
  }

  const AdminServiceDeps deps_;
};

}  // namespace

std::unique_ptr<grpc::Service> CreateAdminService(const AdminServiceDeps& deps) {
  return std::make_unique<AdminService>(deps);
}

}  // namespace loopserve::router
