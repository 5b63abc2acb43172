// loopserve-router: flags, the parts that outlive the server, and the end.
#include <iostream>

#include "common/host_port.h"
#include "common/lifecycle.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "router/config.h"
#include "router/server.h"

namespace loopserve::router {
namespace {

int Run(const RouterConfig& config) {
  const absl::StatusOr<common::LogLevel> level = common::ParseLogLevel(config.log_level);
  const auto format =
      config.log_format == "json" ? common::Logger::Format::kJson : common::Logger::Format::kText;
  const std::unique_ptr<common::Logger> log = common::Logger::Create("router", *level, format);
  const std::unique_ptr<common::Metrics> metrics = common::Metrics::Create("router");
  const common::RealClock clock;

  absl::StatusOr<std::unique_ptr<RouterServer>> server =
      RouterServer::Create(config, *metrics, *log, clock);
  if (!server.ok()) {
    std::cerr << "loopserve-router: " << server.status().message() << "\n";
    return 1;
  }
  const absl::StatusOr<int> metrics_port = metrics->Serve(config.metrics_listen);
  if (!metrics_port.ok()) {
    std::cerr << "loopserve-router: " << metrics_port.status().message() << "\n";
    return 1;
  }
  std::cout << "ready grpc=" << common::HostOf(config.listen) << ":" << (*server)->port()
            << " metrics=" << common::HostOf(config.metrics_listen) << ":" << *metrics_port
            << " admin=" << common::HostOf(config.admin_listen) << ":" << (*server)->admin_port()
            << std::endl;
  const int signal = common::WaitForStopSignal();
  log->Info("stopping", {{"signal", signal}});
  (*server)->Drain();
  return 0;
}

absl::Status CheckConfig(const RouterConfig& config) {
  RETURN_IF_ERROR(common::CheckAddress("listen", config.listen));
  RETURN_IF_ERROR(common::CheckAddress("metrics-listen", config.metrics_listen));
  RETURN_IF_ERROR(common::CheckAddress("admin-listen", config.admin_listen));
  if (const auto workers = ParseWorkerList(config.workers); !workers.ok()) return workers.status();
  if (const auto level = common::ParseLogLevel(config.log_level); !level.ok()) {
    return level.status();
  }
  if (config.log_format != "text" && config.log_format != "json") {
    return absl::InvalidArgumentError("--log-format must be text or json");
  }
  if (const auto directory = CreateDirectory(config.directory); !directory.ok()) {
    return directory.status();
  }
  if (config.max_sessions < 1) {
    return absl::InvalidArgumentError("--max-sessions must be at least 1");
  }
  if (config.max_inflight < 0) {
    return absl::InvalidArgumentError("--max-inflight must not be negative");
  }
  if (config.max_queue < 0) return absl::InvalidArgumentError("--max-queue must not be negative");
  if (config.max_message_bytes < 1024 || config.max_message_bytes > (1 << 30)) {
    return absl::InvalidArgumentError("--max-message-bytes must lie between 1KiB and 1GiB");
  }
  for (const absl::Duration d : {config.max_turn_time, config.check_interval}) {
    if (d <= absl::ZeroDuration() || d > absl::Hours(24)) {
      return absl::InvalidArgumentError(
          "--max-turn-time and --check-interval must be over 0 and at most 24h");
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace loopserve::router

int main(int argc, char** argv) {
  loopserve::common::BlockStopSignals();
  loopserve::router::RouterConfig config;
  loopserve::common::FlagSet flags("loopserve-router",
                                   "Places the turns of conversations on workers.");
  config.AddTo(flags);
  flags.AddCheck([&config] { return loopserve::router::CheckConfig(config); });
  if (!flags.Parse(argc, argv)) return flags.exit_code();
  return loopserve::router::Run(config);
}
