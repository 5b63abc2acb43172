#include <filesystem>
#include <fstream>
#include <thread>

#include "kvstore/session_tombstones.h"
#include "tests/unit/kvstore/session_log_cases.h"

namespace loopserve::kvstore {
namespace {

using testing::MakeRecord;
using testing::StatusIs;

std::string EmptyDirectory(const std::string& name) {
  const std::string path = ::testing::TempDir() + "/" + name;
  std::filesystem::remove_all(path);
  return path;
}

TEST(DiskSessionLog, BehavesAsSessionLog) {
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(EmptyDirectory("disk_log")));
  testing::ExpectBehavesAsSessionLog(*log);
}

TEST(DiskSessionLog, SurvivesAndStillFences) {
  const std::string directory = EmptyDirectory("disk_log_again");
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    ASSERT_OK(log->Put(MakeRecord("a", 5, 2)));
  }
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  ASSERT_OK_AND_ASSIGN(const SessionRecord back, log->Get(common::SessionId("a")));
  EXPECT_EQ(back.turns.size(), 2u);
  EXPECT_THAT(log->Put(MakeRecord("a", 4, 1)), testing::ReasonIs(common::Reason::kStaleEpoch));
}

// UNAVAILABLE would be taken for a kvstore out of reach, which is worth another try elsewhere.
TEST(DiskSessionLog, TroubleWithTheDiskIsInternal) {
  const std::string directory = EmptyDirectory("disk_log_trouble");
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  ASSERT_OK(log->Put(MakeRecord("a", 5, 2)));
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() != ".session") continue;
    const std::filesystem::path path = entry.path();
    std::filesystem::remove(path);
    std::filesystem::create_directory(path);
    break;
  }
  EXPECT_THAT(log->Put(MakeRecord("a", 5, 3)), testing::StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(log->Get(common::SessionId("a")), testing::StatusIs(absl::StatusCode::kInternal));
}

TEST(DiskSessionLog, ADeletedSessionStaysSoAfterARestart) {
  const std::string directory = EmptyDirectory("disk_log_erased");
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    ASSERT_OK(log->Put(MakeRecord("a", 5, 2)));
    ASSERT_OK(log->Erase({common::SessionId("a"), common::Epoch(5)}));
    ASSERT_OK(log->Erase({common::SessionId("b"), common::Epoch(2)}));
    ASSERT_OK(log->Put(MakeRecord("b", 3, 1)));
  }
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    EXPECT_THAT(log->Put(MakeRecord("a", 5, 2)), testing::ReasonIs(common::Reason::kStaleEpoch));
    EXPECT_EQ(common::InfoOf(log->Get(common::SessionId("a")).status()).current_epoch, 5u);
    EXPECT_OK(log->Get(common::SessionId("b"))) << "the id is in use again";
  }
  // The last write was cut short: what stood before it counts, and writing goes on.
  const std::string file = directory + "/erased";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 3);
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    EXPECT_THAT(log->Put(MakeRecord("a", 5, 2)), testing::ReasonIs(common::Reason::kStaleEpoch));
    ASSERT_OK(log->Erase({common::SessionId("c"), common::Epoch(9)}));
  }
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  EXPECT_THAT(log->Put(MakeRecord("c", 9, 2)), testing::ReasonIs(common::Reason::kStaleEpoch));
}

TEST(DiskSessionLog, ACrashBetweenTombstoneAndRecordDeletes) {
  const std::string directory = EmptyDirectory("disk_log_between");
  const std::string file = directory + "/" + common::HashString("a").Hex() + ".session";
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    ASSERT_OK(log->Put(MakeRecord("a", 5, 2)));
    std::filesystem::copy_file(file, directory + "/kept");
    ASSERT_OK(log->Erase({common::SessionId("a"), common::Epoch(5)}));
  }
  std::filesystem::rename(directory + "/kept", file);
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  EXPECT_THAT(log->Get(common::SessionId("a")),
              testing::ReasonIs(common::Reason::kSessionNotFound));
  EXPECT_FALSE(std::filesystem::exists(file));
}

TEST(DiskSessionLog, ManyTombstonesDoNotMakeTheFileGrowForEver) {
  const std::string directory = EmptyDirectory("disk_log_many_erased");
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  for (uint64_t epoch = 1; epoch <= 200; ++epoch) {
    ASSERT_OK(log->Erase({common::SessionId("a"), common::Epoch(epoch)}));
  }
  const uint64_t one = EncodeTombstone({common::SessionId("a"), common::Epoch(1), {}}).size();
  EXPECT_LT(std::filesystem::file_size(directory + "/erased"), 140 * one);
  EXPECT_THAT(log->Put(MakeRecord("a", 200, 1)), testing::ReasonIs(common::Reason::kStaleEpoch));
}

TEST(DiskSessionLog, AFileThatWasNotFinishedIsNoSession) {
  const std::string directory = EmptyDirectory("disk_log_unfinished");
  const std::string name = common::HashString("a").Hex() + ".session";
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    ASSERT_OK(log->Put(MakeRecord("a", 5, 2)));
  }
  // Killed between writing it and giving it its name.
  std::filesystem::rename(directory + "/" + name, directory + "/tmp-" + name);
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  ASSERT_OK_AND_ASSIGN(const auto all, log->List());
  EXPECT_TRUE(all.empty());
  EXPECT_FALSE(std::filesystem::exists(directory + "/tmp-" + name));
}

TEST(DiskSessionLog, DamageIsToldAndKept) {
  const std::string directory = EmptyDirectory("disk_log_damaged");
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    ASSERT_OK(log->Put(MakeRecord("a", 5, 2)));
    ASSERT_OK(log->Put(MakeRecord("b", 5, 2)));
  }
  const std::string file = directory + "/" + common::HashString("a").Hex() + ".session";
  ASSERT_TRUE(std::filesystem::exists(file));
  std::filesystem::resize_file(file, 40);
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  EXPECT_THAT(log->Get(common::SessionId("a")), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(log->Get(common::SessionId("b")));
  EXPECT_TRUE(std::filesystem::exists(file));
}

TEST(DiskSessionLog, SwappedFilesAreDamage) {
  const std::string directory = EmptyDirectory("disk_log_swapped");
  {
    ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
    ASSERT_OK(log->Put(MakeRecord("a", 5, 2)));
  }
  std::filesystem::rename(directory + "/" + common::HashString("a").Hex() + ".session",
                          directory + "/" + common::HashString("b").Hex() + ".session");
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  EXPECT_THAT(log->Get(common::SessionId("b")), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(log->Put(MakeRecord("b", 9, 1)), StatusIs(absl::StatusCode::kAlreadyExists))
      << "the record of another session is not replaced";
}

TEST(DiskSessionLog, ManySessionsCommitAtOnce) {
  const std::string directory = EmptyDirectory("disk_log_many");
  ASSERT_OK_AND_ASSIGN(const auto log, OpenDiskSessionLog(directory));
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int turn = 1; turn <= 5; ++turn) {
          for (const std::string& id : {absl::StrCat("own-", t), std::string("shared")}) {
            EXPECT_OK(log->Put(MakeRecord(id, 1, turn)));
            EXPECT_OK(log->Get(common::SessionId(id)));
          }
        }
      });
    }
  }
  ASSERT_OK_AND_ASSIGN(const auto all, log->List());
  EXPECT_EQ(all.size(), 5u);
  for (const auto& summary : all) EXPECT_EQ(summary.turns, 5u);
}

TEST(DiskSessionLog, AnUnusableDirectoryIsAnError) {
  const std::string file = ::testing::TempDir() + "/disk_log_file";
  std::ofstream(file) << "not a directory";
  EXPECT_THAT(OpenDiskSessionLog(file), StatusIs(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace loopserve::kvstore
