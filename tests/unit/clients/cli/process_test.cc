#include "clients/cli/process.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/support/patience.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

TEST(ProcessTest, SpawnsDetachedWithItsOutputInTheLog) {
  const TempDir dir;
  const std::string log = dir.path() + "/log";
  ASSERT_OK_AND_ASSIGN(
      const ProcessId process,
      SpawnDetached({"/bin/sh", "-c", "echo out; echo err >&2; exec sleep 600"}, log));
  EXPECT_TRUE(IsRunning(process));
  EXPECT_EQ(getsid(process.pid), process.pid);
  SendSignal(process, SIGKILL);
  EXPECT_TRUE(WaitUntilGone({process}, absl::Seconds(10)));
  EXPECT_FALSE(IsRunning(process));
}

TEST(ProcessTest, KeepsWhatTheLogHad) {
  const TempDir dir;
  const std::string log = dir.Write("log", "before\n");
  ASSERT_OK_AND_ASSIGN(const ProcessId process,
                       SpawnDetached({"/bin/sh", "-c", "echo after"}, log));
  ASSERT_TRUE(WaitUntilGone({process}, absl::Seconds(10)));
  EXPECT_EQ(TailOfFile(log, 5), "before\nafter");
}

TEST(ProcessTest, SpawningWhatIsNotThereFails) {
  EXPECT_FALSE(SpawnDetached({"/nonexistent/program"}, "/dev/null").ok());
}

TEST(ProcessTest, AReusedPidIsNotTheProcess) {
  ASSERT_OK_AND_ASSIGN(ProcessId process, SpawnDetached({"/bin/sleep", "600"}, "/dev/null"));
  ProcessId other = process;
  other.start_ticks += 1;
  EXPECT_FALSE(IsRunning(other));
  SendSignal(other, SIGKILL);
  EXPECT_TRUE(IsRunning(process));
  EXPECT_FALSE(WaitUntilGone({process}, absl::ZeroDuration()));
  SendSignal(process, SIGKILL);
  EXPECT_TRUE(WaitUntilGone({process}, absl::Seconds(10)));
}

// The fields of /proc/<pid>/stat from the third on.
std::vector<std::string> StatOf(pid_t pid) {
  const std::string stat = *ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  return absl::StrSplit(stat.substr(stat.rfind(')') + 2), ' ');
}

int WaitToBeKilled(void*) {
  for (;;) pause();
}

TEST(ProcessTest, RunsUntilItsLastThreadEnds) {
  static char stack[64 << 10];
  const pid_t pid = fork();
  if (pid == 0) {
    // By hand, since sanitizers want no threads after a fork.
    clone(WaitToBeKilled, stack + sizeof(stack),
          CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, nullptr);
    syscall(SYS_exit, 0);  // of this thread
  }
  ASSERT_TRUE(testing::Becomes([pid] { return StatOf(pid)[0] == "Z"; }));
  const ProcessId process{pid, std::stoull(StatOf(pid)[19])};
  EXPECT_TRUE(IsRunning(process));
  EXPECT_FALSE(WaitUntilGone({process}, absl::ZeroDuration()));
  kill(pid, SIGKILL);
  EXPECT_TRUE(WaitUntilGone({process}, absl::Seconds(10)));
}

TEST(ProcessTest, FindsWhoHoldsAPort) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const int port = ntohs(address.sin_port);
  EXPECT_FALSE(IsPortFree(port));
  EXPECT_EQ(PidListeningOn(port), getpid());
  EXPECT_EQ(ProcessName(getpid()), "clients_cli_test");
  close(fd);
  EXPECT_TRUE(IsPortFree(port));
  EXPECT_EQ(PidListeningOn(port), std::nullopt);
}

TEST(ProcessTest, WritesWholeFiles) {
  const TempDir dir;
  const std::string path = dir.path() + "/file";
  ASSERT_OK(WriteFileAtomically(path, "one"));
  ASSERT_OK(WriteFileAtomically(path, "two"));
  ASSERT_OK_AND_ASSIGN(const std::string content, ReadFile(path));
  EXPECT_EQ(content, "two");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
  EXPECT_FALSE(WriteFileAtomically(dir.path() + "/no/such", "x").ok());
}

TEST(ProcessTest, TailIsTheLastLines) {
  const TempDir dir;
  EXPECT_EQ(TailOfFile(dir.Write("f", "1\n2\n3\n"), 2), "2\n3");
  EXPECT_EQ(TailOfFile(dir.path() + "/none", 2), "");
}

}  // namespace
}  // namespace loopserve::clients
