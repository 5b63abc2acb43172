#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "clients/cli/cluster_state.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/fake_router.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> Up(const TempDir& dir, std::vector<std::string> more) {
  std::vector<std::string> arguments = {"up",
                                        "--dir",
                                        dir.path() + "/c",
                                        "--bin-dir",
                                        dir.path() + "/bin",
                                        "--model",
                                        dir.path() + "/model.gguf"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(UpTest, TellsAddressesAndHowToGoOn) {
  FakeRouter router;
  router.SetReadyWorkers(2);
  const TempDir dir;
  WriteFakeServers(dir, "", router.address());
  const CliResult up = RunCli(Up(dir, {"--port", "0"}));
  EXPECT_EQ(up.code, kDone) << up.err;
  EXPECT_THAT(up.out, HasSubstr("router\tpid"));
  EXPECT_THAT(up.out, HasSubstr("loopserve down --dir"));
  const CliResult again = RunCli(Up(dir, {"--port", "0"}));
  EXPECT_EQ(again.code, kFailed);
  EXPECT_THAT(again.err, HasSubstr("already up"));
  EXPECT_EQ(RunCli({"down", "--dir", dir.path() + "/c"}).code, kDone);
}

TEST(UpTest, JsonIsTheStateFile) {
  FakeRouter router;
  const TempDir dir;
  WriteFakeServers(dir, "", router.address());
  const CliResult up = RunCli(Up(dir, {"--port", "0", "--workers", "1", "--json"}));
  const absl::Cleanup down = [&] { RunCli({"down", "--dir", dir.path() + "/c"}); };
  ASSERT_EQ(up.code, kDone) << up.err;
  EXPECT_EQ(up.json()["endpoint"], router.address());
  EXPECT_EQ(up.json()["members"].size(), 3u);
}

TEST(UpTest, ARouterThatDoesNotAnswerIsAFailure) {
  const TempDir dir;
  WriteFakeServers(dir);
  EXPECT_EQ(RunCli(Up(dir, {"--port", "0"})).code, kUnreachable);
  EXPECT_FALSE(std::filesystem::exists(ClusterStatePath(dir.path() + "/c")));
}

TEST(UpTest, NamesTheHolderOfABusyPort) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const TempDir dir;
  WriteFakeServers(dir);
  const CliResult up = RunCli(Up(dir, {"--port", absl::StrCat(ntohs(address.sin_port))}));
  close(fd);
  EXPECT_EQ(up.code, kFailed);
  EXPECT_THAT(up.err, HasSubstr(absl::StrCat("process ", getpid())));
  EXPECT_THAT(up.err, HasSubstr("--port"));
}

TEST(UpTest, RefusesNumbersOutOfRange) {
  EXPECT_EQ(RunCli({"up", "--workers", "0"}).code, kBadUsage);
  EXPECT_EQ(RunCli({"up", "--port", "70000"}).code, kBadUsage);
}

}  // namespace
}  // namespace loopserve::clients
