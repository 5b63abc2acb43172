#include <gmock/gmock.h>

#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(DoctorTest, EveryProblemHasAWayOut) {
  const TempDir dir;
  const CliResult doctor = RunCli({"doctor", "--dir", dir.path(), "--json", "--bin-dir", "/none"});
  EXPECT_EQ(doctor.code, kFailed);
  const nlohmann::json document = doctor.json();
  EXPECT_EQ(document["ok"], false);
  for (const nlohmann::json& check : document["checks"]) {
    EXPECT_EQ(check["health"] == "ok", check["way_out"] == "") << check.dump();
  }
}

TEST(DoctorTest, AHealthyMachinePasses) {
  const TempDir dir;
  WriteFakeServers(dir);
  const CliResult doctor = RunCli({"doctor", "--dir", dir.path(), "--bin-dir", dir.path() + "/bin",
                                   "--model", dir.path() + "/model.gguf"});
  EXPECT_THAT(doctor.out, HasSubstr("ok    model"));
  EXPECT_THAT(doctor.out, HasSubstr("ok    executables"));
}

}  // namespace
}  // namespace loopserve::clients
