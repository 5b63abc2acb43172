// loopserve-kvstore: the tiers and session records that workers share, as a process of its own.

#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/config.h"
#include "common/host_port.h"
#include "common/lifecycle.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "common/units.h"
#include "kvstore/config.h"
#include "kvstore/server.h"
#include "kvstore/tier/registry.h"

namespace loopserve::kvstore {
namespace {

constexpr uint64_t kMaxQueuedBytes = uint64_t{256} << 20;

absl::Status Run(const KvStoreConfig& config, common::Logger& log) {
  const auto metrics = common::Metrics::Create("kvstore");
  KvMetrics kv_metrics(*metrics, KvRole::kNode);

  TierOptions options;
  options.host_bytes = config.host_bytes;
  if (!config.dir.empty()) {
    options.disk_directory = config.dir + "/blocks";
    options.disk_bytes = config.disk_bytes;
  }
  ASSIGN_OR_RETURN(auto tiers, CreateTiers(options, log));
  const auto chain = Chain::Create(std::move(tiers), kMaxQueuedBytes, kv_metrics, log);
  kv_metrics.SetUsageSource([&chain] { return chain->usage_by_place(); });
  std::unique_ptr<SessionLog> sessions = CreateMemorySessionLog();
  if (config.dir.empty()) {
    log.Warning("nothing survives this process: --dir is not set");
  } else {
    ASSIGN_OR_RETURN(sessions, OpenDiskSessionLog(config.dir + "/sessions"));
  }

  ASSIGN_OR_RETURN(const auto server, KvServer::Create(config.listen, *chain, *sessions, *metrics));
  ASSIGN_OR_RETURN(const int metrics_port, metrics->Serve(config.metrics_listen));
  ASSIGN_OR_RETURN(const auto known, sessions->List());
  log.Info("serving", {{"host", common::FormatBytes(config.host_bytes)},
                       {"disk", common::FormatBytes(options.disk_bytes)},
                       {"sessions", known.size()}});
  std::cout << "ready grpc=" << common::HostOf(config.listen) << ":" << server->port()
            << " metrics=" << common::HostOf(config.metrics_listen) << ":" << metrics_port
            << std::endl;

  const int signal = common::WaitForStopSignal();
  log.Info("stopping", {{"signal", signal}});
  server->BeginDrain();
  absl::SleepFor(config.drain_settle);
  server->Shutdown(config.drain_timeout);
  const absl::Status flushed = chain->Flush(config.drain_timeout);
  kv_metrics.SetUsageSource(nullptr);
  log.Info("stopped", {{"flushed", flushed.ok()}});
  return absl::OkStatus();
}

}  // namespace
}  // namespace loopserve::kvstore

int main(int argc, char** argv) {
  using namespace loopserve;
  common::BlockStopSignals();
  kvstore::KvStoreConfig config;
  common::FlagSet flags("loopserve-kvstore", "The KV store that LoopServe's workers share.");
  config.Declare(flags);
  if (!flags.Parse(argc, argv)) return flags.exit_code();
  const auto log = common::Logger::Create(
      "kvstore", *common::ParseLogLevel(config.log_level),
      config.log_format == "json" ? common::Logger::Format::kJson : common::Logger::Format::kText);
  if (const absl::Status status = kvstore::Run(config, *log); !status.ok()) {
    log->Error("cannot serve", {{"status", status.ToString()}});
    return 1;
  }
  return 0;
}
