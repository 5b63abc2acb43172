#include <signal.h>

#include <atomic>
#include <memory>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cli/cluster.h"
#include "clients/cli/cluster_options.h"
#include "clients/cli/context.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/progress.h"
#include "common/status_macros.h"

namespace loopserve::clients {
namespace {

constexpr absl::Duration kStopGrace = absl::Seconds(30);
constexpr absl::Duration kWatchInterval = absl::Milliseconds(200);

void TellAddresses(const ClusterState& state, bool foreground, Context& context) {
  std::ostream& out = *context.out;
  for (const Member& member : state.members) {
    out << absl::StrCat(member.name, "\tpid ", member.process.pid, "\tgrpc ", member.grpc,
                        "\tmetrics ", member.metrics,
                        member.admin.empty() ? "" : absl::StrCat("\tadmin ", member.admin), "\n");
  }
  const std::string dir = context.dir.empty() ? "" : absl::StrCat(" --dir ", state.dir);
  out << "Talk to it with 'loopserve chat" << dir << "', "
      << (foreground ? "stop it with Ctrl-C."
                     : absl::StrCat("stop it with 'loopserve down", dir, "'."))
      << std::endl;
}

// Until a signal: tells once about each process that ends by itself.
int Watch(const ClusterState& state, const std::atomic<bool>& stop, Progress& progress) {
  size_t gone = 0;
  while (!stop && gone < state.members.size()) {
    absl::SleepFor(kWatchInterval);
    size_t now_gone = 0;
    for (const Member& member : state.members) now_gone += IsRunning(member.process) ? 0 : 1;
    if (now_gone != gone && !stop) {
      progress.Say(absl::StrCat(now_gone, " of ", state.members.size(),
                                " processes ended; see 'loopserve logs --dir ", state.dir, "'"));
    }
    gone = now_gone;
  }
  return stop ? kDone : kFailed;
}

// A cluster whose router has met every worker.
absl::StatusOr<ClusterState> StartAndAwait(const ClusterOptions& options, const OnStep& on_step,
                                           const std::atomic<bool>& stop) {
  ASSIGN_OR_RETURN(ClusterState state, StartCluster(options, on_step, &stop));
  on_step("waiting for the router to meet the workers");
  Client client(Target{state.endpoint(), state.admin_endpoint()});
  const absl::Status met = client.AwaitWorkers(options.workers, options.ready_timeout, &stop);
  if (met.ok()) return state;
  StopCluster(state, kStopGrace, on_step).status().IgnoreError();
  return met;
}

int RunUp(const ClusterOptions& options, bool foreground, Context& context) {
  std::atomic<bool> stop = false;
  std::atomic<int> signal_number = 0;
  InterruptWatcher::Block();
  InterruptWatcher watcher([&](int signal, int) {
    signal_number = signal;
    stop = true;
  });
  Progress progress(*context.err, context.err_is_terminal);
  const OnStep on_step = [&](absl::string_view text) { progress.Step(text); };
  const absl::StatusOr<ClusterState> state = StartAndAwait(options, on_step, stop);
  progress.Clear();
  if (!state.ok()) {
    const int code = Fail(context, state.status());
    return signal_number != 0 ? 128 + signal_number : code;
  }
  if (context.json) {
    PrintJson(context, ToJson(*state));
  } else {
    TellAddresses(*state, foreground, context);
  }
  if (!foreground) return kDone;
  const int code = Watch(*state, stop, progress);
  const auto killed = StopCluster(*state, kStopGrace, on_step);
  progress.Clear();
  return killed.ok() ? code : Fail(context, killed.status());
}

}  // namespace

void command_up(CLI::App& app, Context& context) {
  CLI::App* up = app.add_subcommand("up", "Start a local cluster: kvstore, workers and router");
  auto options = std::make_shared<ClusterOptions>();
  auto foreground = std::make_shared<bool>(false);
  AddDirOption(*up, context);
  AddJsonOption(*up, context);
  up->add_option("--port", options->port, "Router's port; 0: every port is chosen by the system")
      ->capture_default_str()
      ->check(CLI::Range(0, 65535));
  up->add_flag("--foreground", *foreground, "Stay, and stop the cluster on Ctrl-C");
  AddClusterOptions(*up, *options);
  up->callback([options, foreground, &context] {
    context.run = [options, foreground, &context] {
      options->dir = ClusterDir(context);
      FillDefaults(context, *options);
      return RunUp(*options, *foreground, context);
    };
  });
}

}  // namespace loopserve::clients
