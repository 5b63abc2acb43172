#include "clients/cli/cluster.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace loopserve::clients {
namespace {

namespace fs = std::filesystem;

constexpr int kFirstWorkerPort = 8101;
constexpr int kWorkerPortStride = 10;
constexpr int kKvStorePort = 8201;
constexpr int kTailLines = 15;
constexpr absl::Duration kPollInterval = absl::Milliseconds(20);
constexpr absl::Duration kAbortGrace = absl::Seconds(3);
// Of what has been killed: to give much memory back takes its time.
constexpr absl::Duration kKilledGrace = absl::Seconds(20);

std::string Address(int port) { return absl::StrCat("127.0.0.1:", port); }

void AddIfSet(std::vector<std::string>& command, absl::string_view flag, const std::string& value) {
  if (!value.empty()) command.push_back(absl::StrCat(flag, "=", value));
}

bool HasFlag(const std::vector<std::string>& arguments, absl::string_view flag) {
  return std::any_of(arguments.begin(), arguments.end(), [flag](const std::string& argument) {
    return absl::StartsWith(argument, flag);
  });
}

// The conventional port when it is free, else one of the system's choice.
int PortOrAny(int wanted) { return wanted != 0 && IsPortFree(wanted) ? wanted : 0; }

absl::Status PortTaken(int port) {
  std::string owner = "another process";
  if (const auto pid = PidListeningOn(port)) {
    owner = absl::StrCat("process ", *pid, " (", ProcessName(*pid), ")");
  }
  return absl::FailedPreconditionError(absl::StrCat("port ", port, " is taken by ", owner,
                                                    "; stop it or choose another with --port"));
}

// Held while a cluster is started, so that two `up` do not meet in one directory.
class DirectoryLock {
 public:
  static absl::StatusOr<DirectoryLock> Take(const std::string& dir) {
    const std::string path = absl::StrCat(dir, "/lock");
    const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    if (fd < 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot write in ", dir, ": ", strerror(errno), "; choose another with --dir"));
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      close(fd);
      return absl::FailedPreconditionError(
          absl::StrCat("another 'loopserve up' is starting a cluster in ", dir));
    }
    return DirectoryLock(fd);
  }
  DirectoryLock(DirectoryLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  DirectoryLock& operator=(DirectoryLock&&) = delete;
  ~DirectoryLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
  explicit DirectoryLock(int fd) : fd_(fd) {}
  int fd_;
};

absl::Status RefuseWhenUp(const std::string& dir) {
  const absl::StatusOr<ClusterState> state = LoadClusterState(dir);
  if (absl::IsNotFound(state.status())) return absl::OkStatus();
  RETURN_IF_ERROR(state.status());
  const std::vector<const Member*> running = state->Running();
  if (running.empty()) return absl::OkStatus();
  std::vector<std::string> names;
  for (const Member* member : running) {
    names.push_back(absl::StrCat(member->name, " (pid ", member->process.pid, ")"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("a cluster is already up in ", dir, ": ", absl::StrJoin(names, ", "),
                   "; use it at ", state->endpoint(), ", stop it with 'loopserve down --dir ", dir,
                   "', or choose another --dir and --port"));
}

absl::Status CheckInputs(const ClusterOptions& options) {
  if (!fs::exists(options.model)) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no model at ", options.model,
                     "; get it with 'make model' or name a GGUF file with --model"));
  }
  for (const char* name : {"loopserve-router", "loopserve-worker", "loopserve-kvstore"}) {
    const std::string path = absl::StrCat(options.bin_dir, "/", name);
    if (access(path.c_str(), X_OK) != 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          path,
          " is not an executable; build it with 'make build' or name its folder with --bin-dir"));
    }
  }
  if (options.port != 0 && !IsPortFree(options.port)) return PortTaken(options.port);
  return absl::OkStatus();
}

// Starts members one by one; what it started is stopped again unless Release is called.
class Launcher {
 public:
  Launcher(const ClusterOptions& options, const OnStep& on_step, const std::atomic<bool>* stop)
      : options_(options), on_step_(on_step), stop_(stop), total_(options.workers + 2) {
    state_.dir = options.dir;
    state_.model = options.model;
  }
  ~Launcher() {
    if (released_ || state_.members.empty()) return;
    (void)StopCluster(state_, kAbortGrace, [](absl::string_view) {});
  }
  ClusterState Release() {
    released_ = true;
    return std::move(state_);
  }

  absl::StatusOr<Member> Start(const std::string& name, const std::string& role,
                               const std::vector<std::string>& command) {
    on_step_(absl::StrCat("starting ", name, " (", state_.members.size() + 1, " of ", total_, ")"));
    Member member;
    member.name = name;
    member.role = role;
    member.log = absl::StrCat(options_.dir, "/logs/", name, ".log");
    std::error_code ignored;
    const uintmax_t size = fs::file_size(member.log, ignored);
    const auto log_start = static_cast<std::streamoff>(ignored ? 0 : size);
    ASSIGN_OR_RETURN(member.process, SpawnDetached(command, member.log));
    state_.members.push_back(member);
    RETURN_IF_ERROR(SaveClusterState(state_));
    RETURN_IF_ERROR(AwaitReady(log_start, &state_.members.back()));
    RETURN_IF_ERROR(SaveClusterState(state_));
    return state_.members.back();
  }

 private:
  absl::Status AwaitReady(std::streamoff log_start, Member* member) {
    const absl::Time start = absl::Now();
    while (true) {
      const bool was_running = IsRunning(member->process);
      if (FindReadyLine(log_start, member)) return absl::OkStatus();
      if (!was_running) return Failed(*member, "ended before it was ready");
      if (stop_ != nullptr && *stop_) return absl::CancelledError("interrupted");
      if (absl::Now() - start > options_.ready_timeout) {
        return Failed(*member, absl::StrCat("was not ready within ",
                                            absl::FormatDuration(options_.ready_timeout)));
      }
      absl::SleepFor(kPollInterval);
    }
  }

  static bool FindReadyLine(std::streamoff log_start, Member* member) {
    std::ifstream log(member->log);
    log.seekg(log_start);
    for (std::string line; std::getline(log, line);) {
      // A line without its end may still be growing.
      if (!log.eof() && ParseReadyLine(line, member)) return true;
    }
    return false;
  }

  static absl::Status Failed(const Member& member, absl::string_view what) {
    return absl::InternalError(absl::StrCat(member.name, " ", what, "; the end of ", member.log,
                                            ":\n", TailOfFile(member.log, kTailLines)));
  }

  const ClusterOptions& options_;
  const OnStep& on_step_;
  const std::atomic<bool>* stop_;
  const int total_;
  ClusterState state_;
  bool released_ = false;
};

absl::Status MakeDirectories(const ClusterOptions& options) {
  std::vector<std::string> dirs = {"logs", "kvstore"};
  for (int i = 1; i <= options.workers; ++i) dirs.push_back(absl::StrCat("workers/w", i));
  for (const std::string& dir : dirs) {
    std::error_code error;
    fs::create_directories(fs::path(options.dir) / dir, error);
    if (error) {
      return absl::FailedPreconditionError(absl::StrCat("cannot make ", options.dir, "/", dir, ": ",
                                                        error.message(),
                                                        "; choose another directory with --dir"));
    }
  }
  return absl::OkStatus();
}

// The conventional ports of worker i (from 0), or any.
Ports WorkerPorts(const ClusterOptions& options, int i) {
  if (options.port == 0) return {};
  const int first = kFirstWorkerPort + i * kWorkerPortStride;
  return {PortOrAny(first), PortOrAny(first + 1), 0};
}

}  // namespace

bool ParseReadyLine(absl::string_view line, Member* member) {
  if (!absl::ConsumePrefix(&line, "ready ")) return false;
  for (absl::string_view field : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
    if (absl::ConsumePrefix(&field, "grpc=")) member->grpc = std::string(field);
    if (absl::ConsumePrefix(&field, "metrics=")) member->metrics = std::string(field);
    if (absl::ConsumePrefix(&field, "admin=")) member->admin = std::string(field);
  }
  return !member->grpc.empty();
}

std::vector<std::string> KvStoreCommand(const ClusterOptions& options, const Ports& ports) {
  std::vector<std::string> command = {absl::StrCat(options.bin_dir, "/loopserve-kvstore"),
                                      absl::StrCat("--listen=", Address(ports.grpc)),
                                      absl::StrCat("--metrics-listen=", Address(ports.metrics)),
                                      absl::StrCat("--dir=", options.dir, "/kvstore")};
  AddIfSet(command, "--host-bytes", options.store_host_bytes);
  AddIfSet(command, "--disk-bytes", options.store_disk_bytes);
  command.insert(command.end(), options.kvstore_args.begin(), options.kvstore_args.end());
  return command;
}

std::vector<std::string> WorkerCommand(const ClusterOptions& options, absl::string_view name,
                                       absl::string_view kvstore, const Ports& ports) {
  std::vector<std::string> command = {
      absl::StrCat(options.bin_dir, "/loopserve-worker"),
      absl::StrCat("--id=", name),
      absl::StrCat("--listen=", Address(ports.grpc)),
      absl::StrCat("--metrics-listen=", Address(ports.metrics)),
      absl::StrCat("--model=", options.model),
      absl::StrCat("--kv-disk-dir=", options.dir, "/workers/", name),
      absl::StrCat("--kvstore=", kvstore)};
  if (options.tp != 1) command.push_back(absl::StrCat("--tp=", options.tp));
  if (options.threads != 0) command.push_back(absl::StrCat("--threads=", options.threads));
  AddIfSet(command, "--kv-device-bytes", options.kv_device_bytes);
  AddIfSet(command, "--kv-host-bytes", options.kv_host_bytes);
  AddIfSet(command, "--kv-disk-bytes", options.kv_disk_bytes);
  AddIfSet(command, "--kv-dtype", options.kv_dtype);
  AddIfSet(command, "--kv-codec", options.kv_codec);
  command.insert(command.end(), options.worker_args.begin(), options.worker_args.end());
  return command;
}

std::vector<std::string> RouterCommand(const ClusterOptions& options,
                                       const std::vector<Member>& workers, const Ports& ports) {
  const std::string list = absl::StrJoin(workers, ",", [](std::string* out, const Member& worker) {
    absl::StrAppend(out, worker.name, "=", worker.grpc);
  });
  std::vector<std::string> command = {absl::StrCat(options.bin_dir, "/loopserve-router"),
                                      absl::StrCat("--listen=", Address(ports.grpc)),
                                      absl::StrCat("--metrics-listen=", Address(ports.metrics)),
                                      absl::StrCat("--admin-listen=", Address(ports.admin)),
                                      absl::StrCat("--workers=", list)};
  // On one machine nobody has to notice first that this router stops.
  if (!HasFlag(options.router_args, "--drain-settle")) command.push_back("--drain-settle=0s");
  command.insert(command.end(), options.router_args.begin(), options.router_args.end());
  return command;
}

absl::StatusOr<ClusterState> StartCluster(const ClusterOptions& options, const OnStep& on_step,
                                          const std::atomic<bool>* stop) {
  RETURN_IF_ERROR(MakeDirectories(options));
  ASSIGN_OR_RETURN(const DirectoryLock lock, DirectoryLock::Take(options.dir));
  RETURN_IF_ERROR(RefuseWhenUp(options.dir));
  RETURN_IF_ERROR(CheckInputs(options));
  Launcher launcher(options, on_step, stop);
  const Ports store_ports =
      options.port == 0 ? Ports{} : Ports{PortOrAny(kKvStorePort), PortOrAny(kKvStorePort + 1), 0};
  ASSIGN_OR_RETURN(const Member kvstore,
                   launcher.Start("kvstore", "kvstore", KvStoreCommand(options, store_ports)));
  std::vector<Member> workers;
  for (int i = 0; i < options.workers; ++i) {
    const std::string name = absl::StrCat("w", i + 1);
    ASSIGN_OR_RETURN(Member worker, launcher.Start(name, "worker",
                                                   WorkerCommand(options, name, kvstore.grpc,
                                                                 WorkerPorts(options, i))));
    workers.push_back(std::move(worker));
  }
  Ports router_ports{options.port, 0, 0};
  if (options.port != 0) {
    router_ports = {options.port, PortOrAny(options.port + 1), PortOrAny(options.port + 2)};
  }
  RETURN_IF_ERROR(
      launcher.Start("router", "router", RouterCommand(options, workers, router_ports)).status());
  return launcher.Release();
}

absl::StatusOr<std::vector<std::string>> StopCluster(const ClusterState& state,
                                                     absl::Duration grace, const OnStep& on_step) {
  std::vector<std::string> killed;
  // The router first, so that no turn starts on a worker that is going; the store last, so that
  // workers can still park their sessions in it.
  for (const char* role : {"router", "worker", "kvstore"}) {
    const std::vector<const Member*> members = state.WithRole(role);
    std::vector<ProcessId> processes;
    for (const Member* member : members) {
      if (!IsRunning(member->process)) continue;
      on_step(absl::StrCat("stopping ", member->name));
      SendSignal(member->process, SIGTERM);
      processes.push_back(member->process);
    }
    if (WaitUntilGone(processes, grace)) continue;
    for (const Member* member : members) {
      if (!IsRunning(member->process)) continue;
      on_step(absl::StrCat("killing ", member->name));
      killed.push_back(member->name);
      SendSignal(member->process, SIGKILL);
    }
    if (!WaitUntilGone(processes, kKilledGrace)) {
      return absl::InternalError(absl::StrCat("a ", role, " does not end even when killed"));
    }
  }
  std::error_code ignored;
  fs::remove(ClusterStatePath(state.dir), ignored);
  return killed;
}

}  // namespace loopserve::clients
