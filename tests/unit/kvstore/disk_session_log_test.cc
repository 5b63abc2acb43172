#include <filesystem>
#include <fstream>
#include <thread>

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
