#include "clients/cli/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

extern char** environ;

namespace loopserve::clients {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kPollInterval = absl::Milliseconds(20);
constexpr char kListenState[] = "0A";  // TCP_LISTEN in /proc/net/tcp

struct ProcStat {
  char state = 0;
  int threads = 0;
  uint64_t start_ticks = 0;
};

std::optional<ProcStat> ReadProcStat(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  // The second field, the name, may hold blanks and parentheses; what follows it does not.
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  const std::vector<std::string> fields =
      absl::StrSplit(line.substr(name_end + 1), ' ', absl::SkipEmpty());
  constexpr size_t kState = 0, kThreads = 17, kStartTicks = 19;  // fields 3, 20 and 22 of the line
  ProcStat stat;
  if (fields.size() <= kStartTicks || !absl::SimpleAtoi(fields[kThreads], &stat.threads) ||
      !absl::SimpleAtoi(fields[kStartTicks], &stat.start_ticks)) {
    return std::nullopt;
  }
  stat.state = fields[kState][0];
  return stat;
}

// Inodes of the sockets that listen on the port, from /proc/net/tcp or tcp6.
std::vector<std::string> ListeningInodes(const char* table, int port) {
  std::vector<std::string> inodes;
  std::ifstream file(table);
  std::string line;
  const std::string suffix = absl::StrFormat(":%04X", port);
  while (std::getline(file, line)) {
    const std::vector<std::string> fields = absl::StrSplit(line, ' ', absl::SkipEmpty());
    constexpr size_t kLocal = 1, kState = 3, kInode = 9;
    if (fields.size() > kInode && fields[kState] == kListenState &&
        absl::EndsWith(fields[kLocal], suffix)) {
      inodes.push_back(absl::StrCat("socket:[", fields[kInode], "]"));
    }
  }
  return inodes;
}

bool HoldsAny(const fs::path& fd_dir, const std::vector<std::string>& sockets) {
  std::error_code error;
  for (fs::directory_iterator it(fd_dir, error), end; !error && it != end; it.increment(error)) {
    const std::string target = fs::read_symlink(it->path(), error).string();
    error.clear();
    if (std::find(sockets.begin(), sockets.end(), target) != sockets.end()) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<ProcessId> SpawnDetached(const std::vector<std::string>& argv,
                                        const std::string& log_path) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log_path.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, argv[0].c_str(), &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    return absl::InternalError(absl::StrCat("cannot start ", argv[0], ": ", strerror(error)));
  }
  const std::optional<ProcStat> stat = ReadProcStat(pid);
  return ProcessId{pid, stat ? stat->start_ticks : 0};
}

bool IsRunning(const ProcessId& process) {
  if (process.pid <= 0) return false;
  waitpid(process.pid, nullptr, WNOHANG);
  const std::optional<ProcStat> stat = ReadProcStat(process.pid);
  if (!stat || stat->start_ticks != process.start_ticks || stat->state == 'X') return false;
  // The state is the main thread's: others may still hold the process's ports and locks.
  return stat->state != 'Z' || stat->threads > 1;
}

void SendSignal(const ProcessId& process, int signal) {
  if (IsRunning(process)) kill(process.pid, signal);
}

bool WaitUntilGone(const std::vector<ProcessId>& processes, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (std::any_of(processes.begin(), processes.end(), IsRunning)) {
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(kPollInterval);
  }
  return true;
}

bool IsPortFree(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  const bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  return is_free;
}

std::optional<pid_t> PidListeningOn(int port) {
  std::vector<std::string> sockets = ListeningInodes("/proc/net/tcp", port);
  for (std::string& inode : ListeningInodes("/proc/net/tcp6", port)) {
    sockets.push_back(std::move(inode));
  }
  if (sockets.empty()) return std::nullopt;
  std::error_code error;
  for (fs::directory_iterator it("/proc", error), end; !error && it != end; it.increment(error)) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(it->path().filename().string(), &pid)) continue;
    if (HoldsAny(it->path() / "fd", sockets)) return pid;
  }
  return std::nullopt;
}

std::string ProcessName(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/cmdline"));
  std::string command;
  std::getline(file, command, '\0');
  return fs::path(command).filename().string();
}

std::string OwnDirectory() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path().string();
}

std::string TailOfFile(const std::string& path, int lines) {
  std::ifstream file(path);
  std::vector<std::string> last;
  std::string line;
  while (std::getline(file, line)) {
    last.push_back(line);
    if (last.size() > static_cast<size_t>(lines)) last.erase(last.begin());
  }
  return absl::StrJoin(last, "\n");
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& content) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  if (!file || rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::InternalError(absl::StrCat("cannot write ", path, ": ", strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace loopserve::clients
