#include <gmock/gmock.h>

#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

// The whole demo runs in tests/e2e; here, that a failed start leaves nothing behind.
TEST(DemoTest, AFailedStartCleansUp) {
  const TempDir dir;
  WriteFakeServers(dir, "#!/bin/sh\necho out of luck\nexit 1\n");
  const std::string tmp = dir.path() + "/tmp";
  std::filesystem::create_directories(tmp);
  const CliResult demo = RunCli(
      {"demo", "--bin-dir", dir.path() + "/bin", "--model", dir.path() + "/model.gguf", "--json"},
      {{"TMPDIR", tmp}});
  EXPECT_EQ(demo.code, kFailed);
  EXPECT_EQ(demo.out, "");
  EXPECT_THAT(demo.err, HasSubstr("out of luck"));
  EXPECT_TRUE(std::filesystem::is_empty(tmp));
}

TEST(DemoTest, SaysWhenThereIsNoPlace) {
  const CliResult demo = RunCli({"demo"}, {{"TMPDIR", "/nonexistent"}});
  EXPECT_EQ(demo.code, kFailed);
  EXPECT_THAT(demo.err, HasSubstr("TMPDIR"));
}

}  // namespace
}  // namespace loopserve::clients
