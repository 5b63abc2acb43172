#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kvstore/file.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/manual_clock.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace loopserve::kvstore {
namespace {

using testing::EntryOf;
using ::testing::HasSubstr;
using testing::KeyOf;
using testing::MakeDiskTier;
using testing::StatusIs;

uint64_t BytesIn(const std::string& directory) {
  uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    if (file.path().extension() == ".kv") bytes += file.file_size();
  }
  return bytes;
}

TEST(DiskTierTest, CapacityHoldsAndTheOldestLeaveFirst) {
  testing::TempDir dir;
  constexpr uint64_t kCapacity = 100'000;
  const auto tier = MakeDiskTier(dir.path(), kCapacity);
  uint64_t left = 0;
  tier->SetEvictionListener([&](const Eviction&) { ++left; });
  for (uint64_t i = 0; i < 500; ++i) {
    ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
    ASSERT_LE(BytesIn(dir.path()), kCapacity);
  }
  EXPECT_EQ(left + tier->usage().entries, 500u);
  EXPECT_GT(tier->usage().entries, 80u);
  EXPECT_FALSE(tier->Contains(KeyOf(0)));
  EXPECT_TRUE(tier->Contains(KeyOf(499)));
}

TEST(DiskTierTest, WhatIsUsedSurvivesTheOthers) {
  testing::TempDir dir;
  const auto tier = MakeDiskTier(dir.path(), 100'000);
  ASSERT_OK(tier->Put(KeyOf(0), EntryOf(0)));
  for (uint64_t i = 1; i < 500; ++i) {
    ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
    ASSERT_OK(tier->Get(KeyOf(0))) << i;
  }
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier->Get(KeyOf(0)));
  EXPECT_EQ(*entry.bytes, *EntryOf(0));
}

TEST(DiskTierTest, ErasedEntriesStayGoneAfterARestart) {
  testing::TempDir dir;
  {
    const auto tier = MakeDiskTier(dir.path(), 1 << 20);
    for (uint64_t i = 0; i < 10; ++i) ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
    const PlaneKey keys[] = {KeyOf(3), KeyOf(7), KeyOf(99)};
    ASSERT_OK_AND_ASSIGN(const Erased erased, tier->Erase(keys));
    EXPECT_EQ(erased.entries, 2u);
    EXPECT_EQ(erased.bytes, 2000u);
  }
  const auto tier = MakeDiskTier(dir.path(), 1 << 20);
  EXPECT_EQ(tier->usage().entries, 8u);
  EXPECT_FALSE(tier->Contains(KeyOf(3)));
  EXPECT_TRUE(tier->Contains(KeyOf(4)));
}

TEST(DiskTierTest, EraseGivesTheFilesBack) {
  testing::TempDir dir;
  const auto tier = MakeDiskTier(dir.path(), 1 << 20);
  std::vector<PlaneKey> keys;
  for (uint64_t i = 0; i < 100; ++i) {
    ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
    keys.push_back(KeyOf(i));
  }
  ASSERT_OK(tier->Erase(keys));
  EXPECT_EQ(BytesIn(dir.path()), 0u);
  ASSERT_OK(tier->Put(KeyOf(1), EntryOf(1)));
  EXPECT_OK(tier->Get(KeyOf(1)));
}

TEST(DiskTierTest, ASmallerCapacityAfterARestartHolds) {
  testing::TempDir dir;
  {
    const auto tier = MakeDiskTier(dir.path(), 1 << 20);
    for (uint64_t i = 0; i < 500; ++i) ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
  }
  const auto tier = MakeDiskTier(dir.path(), 100'000);
  EXPECT_LE(BytesIn(dir.path()), 100'000u);
  EXPECT_TRUE(tier->Contains(KeyOf(499)));
}

TEST(DiskTierTest, AnotherOwnerIsRefusedWithTheWayOut) {
  testing::TempDir dir;
  const auto tier = MakeDiskTier(dir.path(), 1 << 20);
  for (const TierFactory& factory : AllTiers()) {
    if (factory.name != "disk") continue;
    EXPECT_THAT(factory.create({.disk_directory = dir.path(), .disk_bytes = 1 << 20},
                               common::Logger::Null()),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("in use by process")));
  }
}

TEST(DiskTierTest, FilesOfOthersAndOfTheFutureAreLeftAlone) {
  testing::TempDir dir;
  std::ofstream(dir / "notes.txt") << "mine";
  const std::string future = "segment-0000000000000007.kv";
  {
    const auto tier = MakeDiskTier(dir.path(), 1 << 20);
    ASSERT_OK(tier->Put(KeyOf(1), EntryOf(1)));
  }
  auto bytes = ReadWholeFile(dir / "segment-0000000000000000.kv").value();
  bytes[8] = std::byte{9};
  ASSERT_OK(ReplaceFile(dir.path(), future, bytes));
  const auto tier = MakeDiskTier(dir.path(), 1 << 20);
  EXPECT_EQ(tier->usage().entries, 1u);
  for (uint64_t i = 0; i < 100; ++i) ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
  EXPECT_EQ(ReadWholeFile(dir / future).value(), bytes);
  EXPECT_TRUE(std::filesystem::exists(dir / "notes.txt"));
}

// A full disk, as a limit on the size of files: writes fail half-way.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_;
};

TEST(DiskTierTest, AFullDiskLosesNothingAndIsTriedAgain) {
  testing::TempDir dir;
  testing::ManualClock clock;
  const auto tier = MakeDiskTier(dir.path(), 1 << 20, &clock);
  ASSERT_OK(tier->Put(KeyOf(1), EntryOf(1)));
  {
    const FileSizeLimit full(1500);
    EXPECT_THAT(tier->Put(KeyOf(2), EntryOf(2)), StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_FALSE(tier->accepting());
    EXPECT_THAT(tier->Put(KeyOf(3), EntryOf(3)), StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_OK(tier->Get(KeyOf(1))) << "reads go on";
    clock.Advance(absl::Seconds(2));
    EXPECT_TRUE(tier->accepting());
    EXPECT_THAT(tier->Put(KeyOf(2), EntryOf(2)), StatusIs(absl::StatusCode::kResourceExhausted));
    clock.Advance(absl::Milliseconds(1500));
    EXPECT_FALSE(tier->accepting()) << "the second pause is longer";
  }
  clock.Advance(absl::Seconds(2));
  ASSERT_OK(tier->Put(KeyOf(2), EntryOf(2)));
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier->Get(KeyOf(2)));
  EXPECT_EQ(*entry.bytes, *EntryOf(2));
  EXPECT_OK(tier->Get(KeyOf(1)));
}

// A file system of its own, so that it can be full.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& path) : path_(path) {
    std::filesystem::create_directories(path);
    mounted_ = mount("tmpfs", path.c_str(), "tmpfs", 0, "size=1m") == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  const std::string path_;
  bool mounted_ = false;
};

TEST(DiskTierTest, RoomIsLeftForTheSessionsRecords) {
  testing::TempDir dir;
  const SmallDisk disk(dir / "disk");
  if (!disk.mounted()) GTEST_SKIP() << "SKIPPED LOUDLY: nobody may mount a tmpfs here";
  const std::string blocks = dir / "disk/blocks";
  const auto tier = MakeDiskTier(blocks, 4 << 20);
  uint64_t n = 0;
  const auto fill = [&](int entries) {
    for (int i = 0; i < entries; ++i, ++n) {
      ASSERT_OK(tier->Put(KeyOf(n), EntryOf(n)));
      ASSERT_GE(SpaceOf(blocks)->free_bytes, (1 << 20) / 16 - 8192u) << n;
    }
  };
  fill(3000);
  EXPECT_GT(tier->usage().entries, 500u) << "the rest of the disk is used";
  EXPECT_TRUE(tier->Contains(KeyOf(n - 1)));
  // Somebody else takes what was left: the cache gives way.
  ASSERT_OK(ReplaceFile(dir / "disk", "record", std::vector<std::byte>(50'000)));
  fill(1);
  ASSERT_OK(ReplaceFile(dir / "disk", "another", std::vector<std::byte>(50'000)));
  fill(1);
  EXPECT_GT(tier->usage().entries, 400u);
}

TEST(DiskTierTest, AQuotaMakesRoomToo) {
  testing::TempDir dir;
  testing::ManualClock clock;
  const auto tier = MakeDiskTier(dir.path(), 64'000, &clock);  // segments of 2,000 bytes
  for (uint64_t i = 0; i < 6; ++i) ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
  const uint64_t before = BytesIn(dir.path());
  {
    const FileSizeLimit full(500);
    EXPECT_THAT(tier->Put(KeyOf(9), EntryOf(9)), StatusIs(absl::StatusCode::kResourceExhausted));
  }
  EXPECT_LT(BytesIn(dir.path()), before);
  EXPECT_FALSE(tier->Contains(KeyOf(0)));
  EXPECT_TRUE(tier->Contains(KeyOf(5)));
}

TEST(DiskTierTest, AFullDiskAtTheStartIsToldClearly) {
  testing::TempDir dir;
  const FileSizeLimit full(0);
  for (const TierFactory& factory : AllTiers()) {
    if (factory.name != "disk") continue;
    EXPECT_THAT(factory.create({.disk_directory = dir.path(), .disk_bytes = 1 << 20},
                               common::Logger::Null()),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("space")));
  }
}

TEST(DiskTierTest, AVanishedDirectoryStopsWritingOnly) {
  testing::TempDir dir;
  testing::ManualClock clock;
  const auto tier = MakeDiskTier(dir / "kv", 100'000, &clock);
  ASSERT_OK(tier->Put(KeyOf(0), EntryOf(0)));
  std::filesystem::remove_all(dir / "kv");
  bool failed = false;
  for (uint64_t i = 1; i < 100 && !failed; ++i) failed = !tier->Put(KeyOf(i), EntryOf(i)).ok();
  EXPECT_TRUE(failed);
  EXPECT_FALSE(tier->accepting());
  EXPECT_OK(tier->Get(KeyOf(0)));
}

// Writes until it is killed; tells through the pipe which entries Put has confirmed.
[[noreturn]] void WriteForEver(const std::string& directory, int report) {
  const auto tier = MakeDiskTier(directory, 1 << 20);
  for (uint64_t i = 0;; ++i) {
    if (!tier->Put(KeyOf(i), EntryOf(i, 100 + i % 5000)).ok()) _exit(1);
    if (write(report, &i, sizeof(i)) != sizeof(i)) _exit(1);
  }
}

TEST(DiskTierTest, KilledWhileWritingItKeepsWhatItConfirmed) {
  testing::TempDir dir;
  for (int round = 0; round < 5; ++round) {
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t child = fork();
    if (child == 0) WriteForEver(dir.path(), pipe_fds[1]);
    close(pipe_fds[1]);
    uint64_t confirmed = 0;
    const uint64_t enough = 150 + 37 * static_cast<uint64_t>(round);
    while (read(pipe_fds[0], &confirmed, sizeof(confirmed)) == sizeof(confirmed)) {
      if (confirmed >= enough) break;
    }
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    close(pipe_fds[0]);

    const auto tier = MakeDiskTier(dir.path(), 1 << 20);
    for (uint64_t i = confirmed - 50; i <= confirmed; ++i) {
      ASSERT_OK_AND_ASSIGN(const Entry entry, tier->Get(KeyOf(i)));
      ASSERT_EQ(*entry.bytes, *EntryOf(i, 100 + i % 5000));
    }
  }
}

}  // namespace
}  // namespace loopserve::kvstore
