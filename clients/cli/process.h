// Processes of this machine: start them detached, tell whether they still run, find who holds a
// port. A process is named by pid and start time, so that a reused pid is never taken for it.
//
// Thread rule: free functions without state; safe from any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace loopserve::clients {

struct ProcessId {
  pid_t pid = 0;
  uint64_t start_ticks = 0;  // field 22 of /proc/<pid>/stat
};

// Starts argv[0] (a path) in a session of its own, standard output and error appended to
// `log_path`, standard input empty, default signal dispositions.
absl::StatusOr<ProcessId> SpawnDetached(const std::vector<std::string>& argv,
                                        const std::string& log_path);

// False once its last thread has exited, zombies of ours included (they are reaped here).
bool IsRunning(const ProcessId& process);
// Delivers only to this very process; no effect when it is gone.
void SendSignal(const ProcessId& process, int signal);
// True when all are gone before `timeout`.
bool WaitUntilGone(const std::vector<ProcessId>& processes, absl::Duration timeout);

// Whether 127.0.0.1:port can be listened on.
bool IsPortFree(int port);
// The process that listens on the port, when /proc lets us see it.
std::optional<pid_t> PidListeningOn(int port);
// "loopserve-worker", or "" when unknown.
std::string ProcessName(pid_t pid);

// The folder of the running executable.
std::string OwnDirectory();
// The last `lines` lines; "" for a file that cannot be read.
std::string TailOfFile(const std::string& path, int lines);
absl::StatusOr<std::string> ReadFile(const std::string& path);
// Through a temporary file and a rename, so that a reader never sees half of it.
absl::Status WriteFileAtomically(const std::string& path, const std::string& content);

}  // namespace loopserve::clients
