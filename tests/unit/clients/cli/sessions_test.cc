#include <gmock/gmock.h>

#include "tests/unit/clients/cli/fake_router.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

class SessionsTest : public ::testing::Test {
 protected:
  CliResult Sessions(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "sessions");
    arguments.insert(arguments.end(), {"--endpoint", router_.address()});
    return RunCli(arguments);
  }
  FakeRouter router_;
};

TEST_F(SessionsTest, ListsWithAndWithoutTheWord) {
  router_.AddSession("a");
  router_.AddSession("b");
  EXPECT_THAT(Sessions({}).out, HasSubstr("2 sessions"));
  EXPECT_THAT(Sessions({"list"}).out, HasSubstr("1,234 tokens"));
  EXPECT_EQ(Sessions({"list", "--json"}).json()["sessions"][1]["session"], "b");
}

TEST_F(SessionsTest, EachActionCallsTheRouter) {
  router_.AddSession("a");
  EXPECT_EQ(Sessions({"show", "a", "--json"}).json()["tokens"], 1234);
  EXPECT_EQ(Sessions({"fork", "a", "--as", "b", "--at-turn", "1", "--json"}).json()["turns"], 1);
  EXPECT_TRUE(router_.HasSession("b"));
  EXPECT_EQ(Sessions({"rewind", "a", "--to-turn", "3", "--json"}).json()["turns"], 3);
  EXPECT_EQ(Sessions({"park", "a"}).code, kDone);
  EXPECT_EQ(router_.parked(), "a");
  EXPECT_EQ(Sessions({"delete", "a"}).code, kDone);
  EXPECT_FALSE(router_.HasSession("a"));
  EXPECT_THAT(Sessions({"delete", "a"}).err, HasSubstr("SESSION_NOT_FOUND"));
}

TEST_F(SessionsTest, BadUsageIsTwo) {
  const CliResult rewind = Sessions({"rewind", "a"});
  EXPECT_EQ(rewind.code, kBadUsage);
  EXPECT_THAT(rewind.err, HasSubstr("'loopserve sessions rewind --help'"));
  EXPECT_EQ(Sessions({"park", "a", "--place", "moon"}).code, kBadUsage);
  EXPECT_EQ(Sessions({"explode"}).code, kBadUsage);
}

}  // namespace
}  // namespace loopserve::clients
