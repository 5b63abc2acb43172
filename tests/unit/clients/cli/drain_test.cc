#include <gmock/gmock.h>

#include "tests/unit/clients/cli/fake_router.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(DrainTest, DrainsAndUndoes) {
  FakeRouter router;
  const CliResult drain = RunCli({"drain", "w1", "--admin-endpoint", router.address()});
  EXPECT_EQ(drain.code, kDone) << drain.err;
  EXPECT_THAT(drain.out, HasSubstr("3 sessions"));
  EXPECT_EQ(RunCli({"drain", "w1", "--json", "--admin-endpoint", router.address()})
                .json()["moved_sessions"],
            3);
  const CliResult undo = RunCli({"drain", "w1", "--undo", "--admin-endpoint", router.address()});
  EXPECT_THAT(undo.out, HasSubstr("takes turns again"));
  EXPECT_EQ(RunCli({"drain", "w9", "--admin-endpoint", router.address()}).code, kFailed);
}

}  // namespace
}  // namespace loopserve::clients
