#include <gmock/gmock.h>

#include "tests/unit/clients/cli/fake_router.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(StatusTest, TellsWorkersSessionsAndTiers) {
  FakeRouter router;
  const std::vector<std::string> target = {"status", "--endpoint", router.address(),
                                           "--admin-endpoint", router.address()};
  const CliResult status = RunCli(target);
  EXPECT_EQ(status.code, kDone) << status.err;
  EXPECT_THAT(status.out, HasSubstr("3 sessions"));
  EXPECT_THAT(status.out, HasSubstr("ready"));
  EXPECT_THAT(status.out, HasSubstr("1.5 KiB of    1.0 MiB"));
  std::vector<std::string> json = target;
  json.push_back("--json");
  const nlohmann::json document = RunCli(json).json();
  EXPECT_EQ(document["workers"][0]["id"], "w1");
  EXPECT_EQ(document["workers"][0]["tiers"]["host"]["used_bytes"], 1536);
  EXPECT_EQ(document["sessions"], 3);
  EXPECT_EQ(document["endpoint"], router.address());
}

TEST(StatusTest, NobodyThereIsFour) {
  const CliResult status = RunCli({"status", "--endpoint", "127.0.0.1:1", "--json"});
  EXPECT_EQ(status.code, kUnreachable);
  EXPECT_EQ(status.out, "");
  EXPECT_THAT(status.err, HasSubstr("admin port 127.0.0.1:3"));
  EXPECT_THAT(status.err, HasSubstr("--admin-endpoint"));
  EXPECT_THAT(status.err, ::testing::Not(HasSubstr("Failed to connect")));
}

}  // namespace
}  // namespace loopserve::clients
