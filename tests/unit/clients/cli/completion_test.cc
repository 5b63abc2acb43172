#include <gmock/gmock.h>

#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(CompletionTest, EachShellKnowsCommandsAndOptions) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const CliResult script = RunCli({"completion", shell});
    EXPECT_EQ(script.code, kDone);
    for (const char* word : {"status", "sessions", "think-time", "rewind"}) {
      EXPECT_THAT(script.out, HasSubstr(word)) << shell;
    }
  }
  EXPECT_EQ(RunCli({"completion", "tcsh"}).code, kBadUsage);
}

// bash itself runs the script and completes `loopserve st`.
TEST(CompletionTest, BashCompletes) {
  const TempDir dir;
  const std::string script = dir.Write("c.bash", RunCli({"completion", "bash"}).out);
  const std::string command = "bash -c 'source " + script +
                              "; COMP_WORDS=(loopserve sess); COMP_CWORD=1; _loopserve; "
                              "echo ${COMPREPLY[@]}; COMP_WORDS=(loopserve sessions rew); "
                              "COMP_CWORD=2; _loopserve; echo ${COMPREPLY[@]}; "
                              "COMP_WORDS=(loopserve up --wor); _loopserve; echo ${COMPREPLY[@]}'";
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  char buffer[256] = {};
  const size_t size = fread(buffer, 1, sizeof(buffer) - 1, pipe);
  pclose(pipe);
  EXPECT_EQ(std::string(buffer, size), "sessions\nrewind\n--workers --worker-arg\n");
}

}  // namespace
}  // namespace loopserve::clients
