// Files by offset, and directories that one process owns. Errors are statuses:
//   ResourceExhausted  no space left, quota or file size limit
//   NotFound           no such file
//   OutOfRange         a read reached past the end
//   Unavailable        everything else that the system refuses
// Messages name the operation and the system's reason; those of OpenDirectory also the directory,
// since they are told to the operator at start.
//
// Thread rule: File's calls are safe from any thread; writers of one range agree among themselves.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

absl::Status ErrnoStatus(int error, absl::string_view what);
// For whoever asked a process or a log that has the disk: UNAVAILABLE becomes INTERNAL, because to
// them it means that the one they asked is out of reach.
absl::Status OwnTrouble(const absl::Status& status);

// Owns a file descriptor.
class File {
 public:
  enum class Mode { kRead, kWrite, kCreate };  // kWrite and kCreate also read
  static absl::StatusOr<File> Open(const std::string& path, Mode mode);

  File() = default;
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  absl::Status ReadAt(uint64_t offset, MutableByteSpan into) const;
  // Writes the parts one behind the other. After an error some of them may have been written.
  absl::Status WriteAt(uint64_t offset, std::initializer_list<ByteSpan> parts);
  absl::Status Truncate(uint64_t size);
  absl::Status Sync();
  absl::StatusOr<uint64_t> Size() const;
  // Gives the range back to the file system, best effort; it reads as zeros then.
  void PunchHole(uint64_t offset, uint64_t size);

 private:
  friend class OwnedDirectory;
  explicit File(int fd) : fd_(fd) {}
  int fd_ = -1;
};

absl::StatusOr<std::vector<std::byte>> ReadWholeFile(const std::string& path);
// Replaces the file at once and durably: after a crash it has the old or the new bytes.
absl::Status ReplaceFile(const std::string& directory, const std::string& name, ByteSpan bytes);
absl::Status RemoveFile(const std::string& path);
// Makes creations and removals in the directory durable.
absl::Status SyncDirectory(const std::string& directory);

// Of the file system that the directory is on: what this user may still write, and all of it.
struct Space {
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
};
absl::StatusOr<Space> SpaceOf(const std::string& directory);

// A directory that this process alone uses, until destruction.
class OwnedDirectory {
 public:
  // Creates it if needed. FailedPrecondition, with the way out, when it cannot be created or
  // written, is full, or another process uses it.
  static absl::StatusOr<OwnedDirectory> Open(const std::string& path);

  const std::string& path() const { return path_; }
  std::string Path(absl::string_view name) const;
  absl::StatusOr<std::vector<std::string>> List() const;  // names, sorted

 private:
  OwnedDirectory(std::string path, File lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  File lock_;
};

}  // namespace loopserve::kvstore
