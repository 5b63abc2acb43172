#include "clients/cli/doctor_checks.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "clients/cli/sha256.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(DoctorChecksTest, APortIsFineWhenOursHoldsIt) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const int port = ntohs(address.sin_port);
  EXPECT_EQ(CheckPort(port, {getpid()}).health, Health::kOk);
  const Check taken = CheckPort(port, {});
  EXPECT_EQ(taken.health, Health::kWarn);
  EXPECT_THAT(taken.detail, HasSubstr(absl::StrCat("pid ", getpid())));
  EXPECT_FALSE(taken.way_out.empty());
  close(fd);
  EXPECT_EQ(CheckPort(port, {}).health, Health::kOk);
}

TEST(DoctorChecksTest, CpuFlagsAreRead) {
  const Check good = CheckCpu(
      "processor\t: 0\nflags\t\t: sse avx2 avx512f avx512_vnni amx_tile\nprocessor\t: "
      "1\nflags\t\t: x\n");
  EXPECT_EQ(good.health, Health::kOk);
  EXPECT_EQ(good.detail, "2 cores; avx2 avx512f avx512_vnni amx_tile");
  EXPECT_EQ(CheckCpu("processor\t: 0\nflags\t\t: sse\n").health, Health::kWarn);
}

TEST(DoctorChecksTest, ModelsAreLookedInto) {
  const TempDir dir;
  const std::string good = dir.Write("good.gguf", "GGUF and more");
  EXPECT_EQ(CheckModel(good, "").health, Health::kOk);
  EXPECT_EQ(CheckModel(good, Sha256Hex("GGUF and more")).health, Health::kOk);
  const Check damaged = CheckModel(good, Sha256Hex("GGUF and else"));
  EXPECT_EQ(damaged.health, Health::kFail);
  EXPECT_THAT(damaged.way_out, HasSubstr("make model"));
  EXPECT_THAT(CheckModel(dir.Write("not", "ELF!"), "").detail, HasSubstr("not a GGUF"));
  EXPECT_EQ(CheckModel(dir.path() + "/none", "").health, Health::kFail);
}

TEST(DoctorChecksTest, DiskLooksAtTheNearestParentThatExists) {
  const TempDir dir;
  EXPECT_THAT(CheckDisk(dir.path() + "/a/b").detail, HasSubstr(dir.path()));
  const std::string file = dir.Write("file", "");
  EXPECT_EQ(CheckDisk(file + "/a").health, Health::kFail);
}

TEST(DoctorChecksTest, ExecutablesAreNamed) {
  const TempDir dir;
  EXPECT_THAT(CheckExecutables(dir.path()).detail, HasSubstr("loopserve-router"));
  WriteFakeServers(dir);
  EXPECT_EQ(CheckExecutables(dir.path() + "/bin").health, Health::kOk);
}

TEST(DoctorChecksTest, TheRestAnswersOnAnyMachine) {
  for (const Check& check : {CheckOpenFiles(), CheckMemory(), CheckIoUring(), CheckGpu()}) {
    EXPECT_FALSE(check.detail.empty()) << check.name;
    EXPECT_EQ(check.health == Health::kOk, check.way_out.empty()) << check.name;
  }
  EXPECT_EQ(HealthName(Health::kWarn), "warn");
}

}  // namespace
}  // namespace loopserve::clients
