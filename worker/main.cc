// loopserve-worker: builds everything once, in order, says what it chose, and stops in reverse.

#include <signal.h>
#include <unistd.h>

#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/cpus.h"
#include "common/host_port.h"
#include "common/lifecycle.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "common/units.h"
#include "kvstore/open_session_log.h"
#include "kvstore/store.h"
#include "worker/config.h"
#include "worker/engine/engine.h"
#include "worker/engine/rank_group.h"
#include "worker/engine/warm_up.h"
#include "worker/model/gguf.h"
#include "worker/pod/pod_follower.h"
#include "worker/pod/pod_leader.h"
#include "worker/server.h"
#include "worker/session/kv_cache.h"
#include "worker/session/session_cache.h"
#include "worker/text/gguf_vocab.h"

namespace loopserve::worker {
namespace {

std::string ModelName(const WorkerConfig& config) {
  if (!config.model_name.empty()) return config.model_name;
  const absl::string_view path = config.model;
  return std::string(absl::StripSuffix(path.substr(path.rfind('/') + 1), ".gguf"));
}

SpeculationOptions SpeculationOf(const WorkerConfig& config) {
  return *SpeculationOptions::Parse(config.speculative_ngram);
}

int64_t LogitRows(const WorkerConfig& config) {
  return config.max_batch + (SpeculationOf(config).max_rows > 0 ? kMaxDraftRows : 0);
}

// What is of this process, whether it leads ranks or follows.
RankGroupOptions LocalOptions(const WorkerConfig& config) {
  RankGroupOptions options;
  options.threads = config.threads;
  options.pin_threads = *common::ParsePinThreads(config.pin_threads);
  options.backend = config.backend;
  return options;
}

// Null where all ranks are in this process.
absl::StatusOr<std::unique_ptr<PodLeader>> ListenForPods(const WorkerConfig& config,
                                                         common::Logger& log) {
  if (!config.leads_pods()) return nullptr;
  return PodLeader::Create({.listen = config.pod_listen,
                            .tp = config.tp,
                            .ranks_per_pod = config.pod_ranks,
                            .must_stop = common::StopRequested},
                           log);
}

absl::StatusOr<std::unique_ptr<RankGroup>> LoadRanks(const WorkerConfig& config,
                                                     const GgufFile& file, PodLeader* pods,
                                                     common::Logger& log) {
  RankGroupOptions options = LocalOptions(config);
  options.tp = config.tp;
  if (pods != nullptr) options.here = pods->here();
  options.activation_bits = config.activation_bits;
  options.kv_dtype = config.KvDtypeOf();
  options.kv_device_bytes = config.kv_device_bytes;
  options.kv_device_share = config.kv_device_share;
  options.stall_timeout = config.stall_timeout;
  options.kv_host_bytes = config.kv_host_bytes;
  options.model.max_step_tokens = config.max_step_tokens;
  options.model.max_logit_rows = LogitRows(config);
  return RankGroup::Create(file, options, log, pods);
}

kvstore::StoreOptions StoreOptionsOf(const WorkerConfig& config) {
  kvstore::StoreOptions options;
  options.host_bytes = config.kv_host_bytes;
  if (!config.kv_disk_dir.empty()) options.disk_directory = config.kv_disk_dir + "/blocks";
  options.disk_bytes = config.kv_disk_bytes;
  options.remote_target = config.kvstore;
  options.codec = config.StoredCodec();
  return options;
}

EngineOptions EngineOptionsOf(const WorkerConfig& config, const Tokenizer& tokenizer,
                              const ChatTemplate* chat) {
  EngineOptions options;
  options.model_name = ModelName(config);
  options.max_batch = config.max_batch;
  options.max_step_tokens = config.max_step_tokens;
  options.max_step_time = config.max_step_time;
  options.speculation = SpeculationOf(config);
  options.max_logit_rows = LogitRows(config);
  options.max_queue = config.max_queue;
  if (chat != nullptr) {
    options.eos_token_ids.assign(chat->StopTokens().begin(), chat->StopTokens().end());
  } else if (tokenizer.eos_id()) {
    options.eos_token_ids = {*tokenizer.eos_id()};
  }
  return options;
}

absl::Status Run(const WorkerConfig& config, common::Logger& log) {
  const auto metrics = common::Metrics::Create("worker");
  const common::RealClock clock;

  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(config.model));
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(*file));
  std::unique_ptr<ChatTemplate> chat;
  if (absl::StatusOr<std::unique_ptr<ChatTemplate>> loaded = LoadChatTemplate(*file, *tokenizer);
      loaded.ok()) {
    chat = *std::move(loaded);
  } else {
    log.Warning("no chat turns, only completions", {{"why", loaded.status().ToString()}});
  }
  ASSIGN_OR_RETURN(const auto pods, ListenForPods(config, log));
  ASSIGN_OR_RETURN(const auto ranks, LoadRanks(config, *file, pods.get(), log));
  RETURN_IF_ERROR(WarmUp(*ranks, config.max_step_tokens, log));

  kvstore::KvMetrics kv_metrics(*metrics);
  ASSIGN_OR_RETURN(const auto store,
                   kvstore::CreateKvStore(StoreOptionsOf(config), ranks->pool(), kv_metrics, log));
  const std::string session_dir =
      config.kv_disk_dir.empty() ? "" : config.kv_disk_dir + "/sessions";
  ASSIGN_OR_RETURN(const auto session_log,
                   kvstore::OpenSessionLog({session_dir, config.kvstore}, log));
  KvCache kv({.model_fingerprint = ranks->config().fingerprint,
              .policy_tag = KvCache::PolicyTag(ranks->activation_format()),
              .codec = config.StoredCodec()},
             ranks->pool(), store.get(), kv_metrics);
  SessionCache sessions({.owner = config.id,
                         .model = ranks->config().fingerprint,
                         .model_name = ModelName(config),
                         .max_resident = static_cast<size_t>(config.max_sessions)},
                        *session_log, kv, clock, *metrics, log);
  ASSIGN_OR_RETURN(const auto engine,
                   Engine::Create(EngineOptionsOf(config, *tokenizer, chat.get()), *ranks, kv,
                                  sessions, clock, *metrics, log));
  ASSIGN_OR_RETURN(const auto server,
                   WorkerServer::Create(
                       {.worker_id = config.id,
                        .listen = config.listen,
                        .model_name = ModelName(config),
                        .max_queue = config.max_queue,
                        .session_ttl = config.session_ttl,
                        .drain_timeout = config.drain_timeout},
                       {*engine, sessions, *ranks, kv, store.get(), *tokenizer, chat.get(), log}));
  ASSIGN_OR_RETURN(const int metrics_port, metrics->Serve(config.metrics_listen));
  log.Info("serving", {{"model", ModelName(config)},
                       {"backend", ranks->backend_name()},
                       {"tp", ranks->size()},
                       {"weights", common::FormatBytes(ranks->resident_bytes())},
                       {"kv_dtype", config.kv_dtype},
                       {"kv_blocks", ranks->pool().num_blocks()},
                       {"context_tokens", engine->context_tokens()}});
  std::cout << "ready grpc=" << common::HostOf(config.listen) << ":" << server->port()
            << " metrics=" << common::HostOf(config.metrics_listen) << ":" << metrics_port
            << std::endl;

  const int signal = common::WaitForStopSignal();
  log.Info("stopping", {{"signal", signal}});
  server->BeginDrain();
  absl::SleepFor(config.drain_settle);
  const size_t parked = server->DrainAndPark();
  server->Shutdown();
  engine->Stop();
  log.Info("stopped", {{"parked_sessions", parked}});
  return absl::OkStatus();
}

// A process that holds ranks of another's model.
absl::Status Follow(const WorkerConfig& config, common::Logger& log) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(config.model));
  const auto follower = PodFollower::Create(
      {.leader = config.join, .pod = config.id, .local = LocalOptions(config)}, *file, log);
  std::cout << "following " << config.join << std::endl;
  absl::Status status;
  std::jthread running = common::NamedThread("follower", [&](std::stop_token) {
    status = follower->Run();
    if (!status.ok()) kill(getpid(), SIGTERM);  // ends the wait below
  });
  common::WaitForStopSignal();
  follower->Stop();
  running.join();
  if (follower->lost()) {
    log.Error("a rank hangs in its device; ending", {{"status", status.ToString()}});
    _exit(1);  // whoever waited for it would hang, too
  }
  if (status.ok()) log.Info("stopped");
  return status;
}

}  // namespace
}  // namespace loopserve::worker

int main(int argc, char** argv) {
  using namespace loopserve;
  common::BlockStopSignals();
  worker::WorkerConfig config;
  common::FlagSet flags("loopserve-worker", "One model shard group of LoopServe.");
  config.Declare(flags);
  if (!flags.Parse(argc, argv)) return flags.exit_code();
  const auto log = common::Logger::Create(
      absl::StrCat("worker ", config.id), *common::ParseLogLevel(config.log_level),
      config.log_format == "json" ? common::Logger::Format::kJson : common::Logger::Format::kText);
  const absl::Status status =
      config.follows() ? worker::Follow(config, *log) : worker::Run(config, *log);
  if (absl::IsCancelled(status) && common::StopRequested()) {  // before it was ready
    log->Info("stopped");
    return 0;
  }
  if (!status.ok()) {
    log->Error(config.follows() ? "cannot follow" : "cannot serve",
               {{"status", status.ToString()}});
    return 1;
  }
  return 0;
}
