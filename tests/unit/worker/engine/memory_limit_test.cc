#include "worker/engine/memory_limit.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

class MemoryLimitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "memory_limit_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void WriteMeminfo() {
    Write("/proc/meminfo",
          "MemTotal:       2048 kB\nMemFree: 10 kB\nMemAvailable:   1000 kB\nHugePages_Total: 0\n");
  }
  std::string root_;
};

TEST_F(MemoryLimitTest, ReadsMemAvailable) {
  WriteMeminfo();
  EXPECT_EQ(*AvailableMemory(root_), 1000u * 1024);
}

TEST_F(MemoryLimitTest, AContainersLimitCounts) {
  WriteMeminfo();
  Write("/sys/fs/cgroup/memory.max", "500000\n");
  Write("/sys/fs/cgroup/memory.current", "100000\n");
  EXPECT_EQ(*AvailableMemory(root_), 400000u);
  Write("/sys/fs/cgroup/memory.current", "600000\n");
  EXPECT_EQ(*AvailableMemory(root_), 0u);
  Write("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(*AvailableMemory(root_), 1000u * 1024);
}

TEST_F(MemoryLimitTest, SoDoesAnOlderContainers) {
  WriteMeminfo();
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(*AvailableMemory(root_), 1000u * 1024);
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "700\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "200\n");
  EXPECT_EQ(*AvailableMemory(root_), 500u);
}

TEST_F(MemoryLimitTest, NoMeminfoIsAnError) {
  EXPECT_THAT(AvailableMemory(root_), testing::StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(MemoryLimitTest, ThisMachineHasSome) { EXPECT_GT(*AvailableMemory(), 0u); }

}  // namespace
}  // namespace loopserve::worker
