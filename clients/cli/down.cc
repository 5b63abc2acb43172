#include <memory>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "clients/cli/cluster.h"
#include "clients/cli/context.h"
#include "clients/cli/progress.h"

namespace loopserve::clients {
namespace {

constexpr double kDefaultGraceSeconds = 30;

int RunDown(double grace_s, Context& context) {
  const std::string dir = ClusterDir(context);
  const absl::StatusOr<ClusterState> state = LoadClusterState(dir);
  if (absl::IsNotFound(state.status())) {
    if (context.json)
      PrintJson(context, {{"dir", dir}, {"stopped", 0}, {"killed", nlohmann::json::array()}});
    *context.err << "nothing is up in " << dir << std::endl;
    return kDone;
  }
  if (!state.ok()) return Fail(context, state.status());
  const size_t running = state->Running().size();
  Progress progress(*context.err, context.err_is_terminal);
  const auto killed = StopCluster(*state, absl::Seconds(grace_s),
                                  [&](absl::string_view text) { progress.Step(text); });
  progress.Clear();
  if (!killed.ok()) return Fail(context, killed.status());
  if (context.json) {
    PrintJson(context, {{"dir", dir}, {"stopped", running}, {"killed", *killed}});
  } else if (running == 0) {
    *context.out << "the cluster in " << dir << " had ended already; cleaned up" << std::endl;
  } else {
    *context.out << "stopped " << running << " processes"
                 << (killed->empty() ? ""
                                     : absl::StrCat(", by force: ", absl::StrJoin(*killed, ", ")))
                 << "; sessions are kept in " << dir << std::endl;
  }
  return kDone;
}

}  // namespace

void command_down(CLI::App& app, Context& context) {
  CLI::App* down = app.add_subcommand("down", "Stop the local cluster; its sessions are kept");
  auto grace_s = std::make_shared<double>(kDefaultGraceSeconds);
  AddDirOption(*down, context);
  AddJsonOption(*down, context);
  down->add_option("--grace", *grace_s, "Seconds until what has not ended is killed")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 3600.0));
  down->callback([grace_s, &context] {
    context.run = [grace_s, &context] { return RunDown(*grace_s, context); };
  });
}

}  // namespace loopserve::clients
