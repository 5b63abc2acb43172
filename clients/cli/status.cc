#include <algorithm>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/client.h"
#include "clients/cli/cluster_state.h"
#include "clients/cli/context.h"
#include "clients/cli/report.h"

namespace loopserve::clients {
namespace {

void PrintWorker(const admin::v1::WorkerStatus& worker, std::ostream& out) {
  const worker::v1::GetInfoResponse& info = worker.info();
  out << absl::StrFormat("%-8s %-9s %-22s %3d sessions  %2d turns running  %2d waiting",
                         worker.worker_id(), WorkerStateName(worker.state()), worker.address(),
                         worker.sessions(), info.running(), info.waiting());
  if (!info.backend().empty()) {
    out << absl::StrCat("  ", info.backend(),
                        info.tp_size() > 1 ? absl::StrCat(" tp=", info.tp_size()) : "");
  }
  out << "\n";
  for (const worker::v1::TierUsage& tier : info.tiers()) {
    if (tier.capacity_bytes() == 0 && tier.used_bytes() == 0) continue;
    out << absl::StrFormat("  %-7s %10s of %10s\n", PlaceName(tier.place()),
                           FormatBytes(tier.used_bytes()), FormatBytes(tier.capacity_bytes()));
  }
  if (!worker.last_error().empty()) out << "  last error: " << worker.last_error() << "\n";
}

void PrintState(const admin::v1::GetClusterStateResponse& state, const Target& target,
                std::ostream& out) {
  out << absl::StrFormat("router %s: %d sessions, %d turns running, %d queued\n", target.chat,
                         state.sessions(), state.inflight(), state.queued());
  for (const admin::v1::WorkerStatus& worker : state.workers()) PrintWorker(worker, out);
  out << std::flush;
}

// The processes of the local cluster, when the router asked is theirs.
nlohmann::json Processes(const Context& context, const Target& target) {
  const absl::StatusOr<ClusterState> local = LoadClusterState(ClusterDir(context));
  nlohmann::json processes = nlohmann::json::array();
  if (!local.ok() || local->endpoint() != target.chat) return processes;
  for (const Member& member : local->members) {
    processes.push_back({{"name", member.name},
                         {"pid", member.process.pid},
                         {"running", IsRunning(member.process)},
                         {"grpc", member.grpc},
                         {"metrics", member.metrics}});
  }
  return processes;
}

int RunStatus(Context& context) {
  Client client(ResolveTarget(context));
  const auto state = client.ClusterState();
  if (!state.ok()) return Fail(context, state.status());
  const nlohmann::json processes = Processes(context, client.target());
  if (context.json) {
    nlohmann::json document = ClusterJson(*state);
    document["endpoint"] = client.target().chat;
    document["processes"] = processes;
    PrintJson(context, document);
    return kDone;
  }
  PrintState(*state, client.target(), *context.out);
  for (const nlohmann::json& process : processes) {
    if (!process["running"].get<bool>()) {
      *context.out << absl::StrFormat("process %s (pid %d) has ended\n",
                                      process["name"].get<std::string>(),
                                      process["pid"].get<int>());
    }
  }
  return kDone;
}

}  // namespace

void command_status(CLI::App& app, Context& context) {
  CLI::App* status = app.add_subcommand("status", "Workers, sessions and bytes per tier");
  AddTargetOptions(*status, context);
  AddJsonOption(*status, context);
  status->callback([&context] { context.run = [&context] { return RunStatus(context); }; });
}

}  // namespace loopserve::clients
