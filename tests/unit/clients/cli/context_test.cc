#include "clients/cli/context.h"

#include <gmock/gmock.h>

#include <sstream>

#include "clients/cli/cluster_state.h"
#include "common/error.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

class ContextTest : public ::testing::Test {
 protected:
  ContextTest() {
    context_.out = &out_;
    context_.err = &err_;
    context_.env = Environment::Of({{"HOME", dir_.path()}});
  }
  void SaveCluster(const std::string& dir) {
    std::filesystem::create_directories(dir);
    ClusterState state;
    state.dir = dir;
    state.members.push_back({"router", "router", {}, "h:11", "", "h:99", ""});
    ASSERT_OK(SaveClusterState(state));
  }
  TempDir dir_;
  std::ostringstream out_, err_;
  Context context_;
};

TEST_F(ContextTest, TargetsInOrderOfPrecedence) {
  EXPECT_EQ(ResolveTarget(context_).chat, "127.0.0.1:8001");
  EXPECT_EQ(ResolveTarget(context_).admin, "127.0.0.1:8003");
  SaveCluster(dir_.path() + "/.loopserve");
  EXPECT_EQ(ResolveTarget(context_).chat, "h:11");
  EXPECT_EQ(ResolveTarget(context_).admin, "h:99");
  context_.env = Environment::Of({{"HOME", dir_.path()}, {"LOOPSERVE_ENDPOINT", "e:5"}});
  EXPECT_EQ(ResolveTarget(context_).chat, "e:5");
  EXPECT_EQ(ResolveTarget(context_).admin, "e:7");
  context_.dir = dir_.path() + "/.loopserve";
  EXPECT_EQ(ResolveTarget(context_).chat, "h:11");
  context_.endpoint = "o:20";
  EXPECT_EQ(ResolveTarget(context_).chat, "o:20");
  EXPECT_EQ(ResolveTarget(context_).admin, "o:22");
  context_.admin_endpoint = "a:1";
  EXPECT_EQ(ResolveTarget(context_).admin, "a:1");
}

TEST_F(ContextTest, FailuresNameTheReasonAndChooseTheCode) {
  EXPECT_EQ(Fail(context_, common::MakeError(common::Reason::kSessionNotFound, "no such")),
            kFailed);
  EXPECT_THAT(err_.str(), HasSubstr("loopserve: no such (SESSION_NOT_FOUND)"));
  EXPECT_EQ(Fail(context_, absl::UnavailableError("gone")), kUnreachable);
  EXPECT_EQ(Fail(context_, common::MakeError(common::Reason::kNoWorker, "none")), kFailed);
  EXPECT_EQ(out_.str(), "");
}

TEST_F(ContextTest, JsonSurvivesBytesThatAreNotText) {
  PrintJson(context_, {{"text", "a\xff"}});
  EXPECT_FALSE(nlohmann::json::parse(out_.str(), nullptr, false).is_discarded());
}

}  // namespace
}  // namespace loopserve::clients
