#include "kvstore/file.h"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "tests/support/kv_bytes.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace loopserve::kvstore {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

TEST(FileTest, WritesAndReadsByOffset) {
  testing::TempDir dir;
  ASSERT_OK_AND_ASSIGN(File file, File::Open(dir / "a", File::Mode::kCreate));
  const auto one = testing::RandomBytes(10, 1);
  const auto two = testing::RandomBytes(20, 2);
  ASSERT_OK(file.WriteAt(5, {one, two}));
  ASSERT_OK_AND_ASSIGN(const uint64_t size, file.Size());
  EXPECT_EQ(size, 35u);
  std::vector<std::byte> back(20);
  ASSERT_OK(file.ReadAt(15, back));
  EXPECT_EQ(back, two);
  EXPECT_THAT(file.ReadAt(16, back), StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_OK(file.Truncate(3));
  ASSERT_OK_AND_ASSIGN(const auto whole, ReadWholeFile(dir / "a"));
  EXPECT_EQ(whole.size(), 3u);
}

TEST(FileTest, MissingFilesAreNotFound) {
  testing::TempDir dir;
  EXPECT_THAT(File::Open(dir / "a", File::Mode::kRead), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(RemoveFile(dir / "a"), StatusIs(absl::StatusCode::kNotFound));
}

TEST(FileTest, ErrorsOfSpaceAreToldApart) {
  for (const int error : {ENOSPC, EDQUOT, EFBIG}) {
    EXPECT_TRUE(absl::IsResourceExhausted(ErrnoStatus(error, "write")));
  }
  EXPECT_THAT(ErrnoStatus(EIO, "write"), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(FileTest, ReplaceLeavesNoTemporaryFile) {
  testing::TempDir dir;
  const auto one = testing::RandomBytes(10, 1);
  const auto two = testing::RandomBytes(5, 2);
  ASSERT_OK(ReplaceFile(dir.path(), "a", one));
  ASSERT_OK(ReplaceFile(dir.path(), "a", two));
  ASSERT_OK_AND_ASSIGN(const auto back, ReadWholeFile(dir / "a"));
  EXPECT_EQ(back, two);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(OwnedDirectoryTest, OneOwnerAtATime) {
  testing::TempDir dir;
  const std::string path = dir / "deep/er";
  {
    ASSERT_OK_AND_ASSIGN(const OwnedDirectory first, OwnedDirectory::Open(path));
    const auto second = OwnedDirectory::Open(path);
    EXPECT_THAT(second, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("in use by")));
    EXPECT_THAT(second, StatusIs(absl::StatusCode::kFailedPrecondition,
                                 HasSubstr(absl::StrCat("process ", getpid()))));
  }
  EXPECT_OK(OwnedDirectory::Open(path));
}

TEST(OwnedDirectoryTest, WhatIsNoDirectoryCannotBeUsed) {
  testing::TempDir dir;
  ASSERT_OK(ReplaceFile(dir.path(), "file", {}));
  EXPECT_THAT(OwnedDirectory::Open(dir / "file/sub"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("choose another")));
}

TEST(OwnedDirectoryTest, AReadOnlyDirectoryCannotBeUsed) {
  testing::TempDir dir;
  std::filesystem::permissions(dir.path(), std::filesystem::perms(0555));
  const pid_t child = fork();
  if (child == 0) {
    // Root may write anywhere, so the check runs as somebody else.
    if (getuid() == 0 && setuid(65534) != 0) _exit(3);
    const auto opened = OwnedDirectory::Open(dir.path());
    const bool told = absl::IsFailedPrecondition(opened.status()) &&
                      opened.status().message().find(dir.path()) != absl::string_view::npos;
    _exit(told ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(OwnedDirectoryTest, ListsNamesInOrder) {
  testing::TempDir dir;
  ASSERT_OK_AND_ASSIGN(const OwnedDirectory owned, OwnedDirectory::Open(dir.path()));
  ASSERT_OK(ReplaceFile(dir.path(), "b", {}));
  ASSERT_OK(ReplaceFile(dir.path(), "a", {}));
  ASSERT_OK_AND_ASSIGN(const auto names, owned.List());
  EXPECT_THAT(names, ::testing::ElementsAre("LOCK", "a", "b"));
}

}  // namespace
}  // namespace loopserve::kvstore
