#include "common/config.h"

#include <stdlib.h>

#include <fstream>

#include "tests/support/status_matchers.h"

namespace loopserve::common {
namespace {

using ::testing::HasSubstr;

struct Settings {
  std::string listen = "127.0.0.1:1";
  int threads = 2;
  bool fast = true;
  uint64_t bytes = 1024;
  absl::Duration wait = absl::Seconds(5);
  std::vector<std::string> workers;
};

struct Outcome {
  bool run;
  int code;
  std::string out, err;
};

Outcome Parse(Settings& s, std::vector<std::string> args) {
  FlagSet flags("prog", "A program.");
  flags.Add("listen", &s.listen, "Address.");
  flags.Add("threads", &s.threads, "Threads.");
  flags.Add("fast", &s.fast, "Fast.");
  flags.AddBytes("kv-host-bytes", &s.bytes, "Bytes.");
  flags.AddDuration("drain-timeout", &s.wait, "Wait.");
  flags.Add("workers", &s.workers, "Workers.");
  flags.AddCheck([&s] {
    return s.threads < 0 ? absl::InvalidArgumentError("--threads must be at least 0")
                         : absl::OkStatus();
  });
  args.insert(args.begin(), "prog");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const bool run = flags.Parse(static_cast<int>(argv.size()), argv.data());
  return {run, flags.exit_code(), ::testing::internal::GetCapturedStdout(),
          ::testing::internal::GetCapturedStderr()};
}

std::string WriteFile(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/config_test.yaml";
  std::ofstream(path) << text;
  return path;
}

TEST(Config, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const std::string path = WriteFile("listen: file\nthreads: 3\nkv-host-bytes: 8GiB\n");
  setenv("LOOPSERVE_LISTEN", "env", 1);
  setenv("LOOPSERVE_THREADS", "4", 1);
  Settings s;
  const Outcome o = Parse(s, {"--config=" + path, "--threads=5"});
  unsetenv("LOOPSERVE_LISTEN");
  unsetenv("LOOPSERVE_THREADS");
  EXPECT_TRUE(o.run) << o.err;
  EXPECT_EQ(s.threads, 5);
  EXPECT_EQ(s.listen, "env");
  EXPECT_EQ(s.bytes, uint64_t{8} << 30);
  EXPECT_EQ(s.wait, absl::Seconds(5));
}

TEST(Config, ParsesEveryKind) {
  Settings s;
  const Outcome o = Parse(s, {"--no-fast", "--drain-timeout=1m30s", "--workers=a=x:1,b=y:2"});
  EXPECT_TRUE(o.run) << o.err;
  EXPECT_FALSE(s.fast);
  EXPECT_EQ(s.wait, absl::Seconds(90));
  EXPECT_EQ(s.workers, (std::vector<std::string>{"a=x:1", "b=y:2"}));
}

TEST(Config, UnknownNamesAreErrorsWithTheNearest) {
  Settings s;
  Outcome o = Parse(s, {"--thread=3"});
  EXPECT_FALSE(o.run);
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("--threads"));
  o = Parse(s, {"--config", WriteFile("listne: x\n")});
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("did you mean --listen"));
}

TEST(Config, BadValuesAreErrors) {
  for (const char* bad : {"--threads=x", "--kv-host-bytes=lots", "--drain-timeout=soon",
                          "--threads=-1", "--config=/nonexistent.yaml"}) {
    Settings s;
    const Outcome o = Parse(s, {bad});
    EXPECT_FALSE(o.run) << bad;
    EXPECT_EQ(o.code, 2) << bad;
    EXPECT_THAT(o.err, HasSubstr("Try --help")) << bad;
  }
}

TEST(Config, AWordThatIsNoFlagIsNotTakenForOne) {
  Settings s;
  const Outcome o = Parse(s, {"extra"});
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("takes flags only; what does 'extra' mean?"));
  EXPECT_THAT(o.err, ::testing::Not(HasSubstr("did you mean")));
}

TEST(Config, AnAddressIsAHostAndAPort) {
  for (const char* good : {"127.0.0.1:8101", "localhost:0", "[::1]:65535", "dns:///store:8201"}) {
    EXPECT_OK(CheckAddress("listen", good)) << good;
  }
  for (const char* bad : {"garbage", "", ":8101", "host:", "host:x", "host:-1", "host:65536",
                          "::1:80", "two words:80", "host:80/path"}) {
    EXPECT_THAT(CheckAddress("listen", bad),
                testing::StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--listen")))
        << bad;
  }
  EXPECT_THAT(CheckAddress("kvstore", "host:0", 1),
              testing::StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1 to 65535")));
}

TEST(Config, HelpPrintAndCheckDoNotRun) {
  Settings s;
  Outcome o = Parse(s, {"--help"});
  EXPECT_FALSE(o.run);
  EXPECT_EQ(o.code, 0);
  EXPECT_THAT(o.out, HasSubstr("--kv-host-bytes"));
  o = Parse(s, {"--print-config", "--threads=9"});
  EXPECT_FALSE(o.run);
  EXPECT_THAT(o.out, HasSubstr("threads: 9  # flag"));
  EXPECT_THAT(o.out, HasSubstr("listen: 127.0.0.1:1  # default"));
  o = Parse(s, {"--check-config"});
  EXPECT_EQ(o.code, 0);
}

}  // namespace
}  // namespace loopserve::common
