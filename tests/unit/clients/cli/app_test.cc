#include "clients/cli/app.h"

#include <gmock/gmock.h>

#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(AppTest, HelpListsEverySubcommandAndEachHasItsOwn) {
  const CliResult help = RunCli({"--help"});
  EXPECT_EQ(help.code, kDone);
  CLI::App app;
  Context context;
  DeclareCommands(app, context);
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    EXPECT_THAT(help.out, HasSubstr(command->get_name()));
    EXPECT_FALSE(command->get_description().empty()) << command->get_name();
    const CliResult own = RunCli({command->get_name(), "--help"});
    EXPECT_EQ(own.code, kDone);
    EXPECT_THAT(own.out, HasSubstr(command->get_description()));
    for (const CLI::Option* option : command->get_options()) {
      EXPECT_FALSE(option->get_description().empty())
          << command->get_name() << " " << option->get_name();
    }
  }
}

TEST(AppTest, EveryDataCommandSpeaksJson) {
  CLI::App app;
  Context context;
  DeclareCommands(app, context);
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    if (command->get_name() == "completion") continue;
    EXPECT_NE(command->get_option_no_throw("--json"), nullptr) << command->get_name();
  }
}

TEST(AppTest, VersionIsData) {
  const CliResult version = RunCli({"--version"});
  EXPECT_EQ(version.code, kDone);
  EXPECT_THAT(version.out, HasSubstr("loopserve 0."));
}

TEST(AppTest, BadUsageIsTwoWithTheNearestMatch) {
  const CliResult option = RunCli({"status", "--jsn"});
  EXPECT_EQ(option.code, kBadUsage);
  EXPECT_EQ(option.out, "");
  EXPECT_THAT(option.err, HasSubstr("did you mean --json?"));
  EXPECT_THAT(option.err, HasSubstr("loopserve status --help"));
  const CliResult command = RunCli({"staus"});
  EXPECT_EQ(command.code, kBadUsage);
  EXPECT_THAT(command.err, HasSubstr("did you mean status?"));
  EXPECT_EQ(RunCli({"drain"}).code, kBadUsage);
  EXPECT_EQ(RunCli({}).code, kBadUsage);
  EXPECT_EQ(RunCli({"bench", "--users", "many"}).code, kBadUsage);
  EXPECT_EQ(RunCli({"status", "--zzzzzzzz"}).code, kBadUsage);
}

}  // namespace
}  // namespace loopserve::clients
