#include "kvstore/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace loopserve::kvstore {
namespace {

constexpr char kLockName[] = "LOCK";
constexpr size_t kProbeBytes = 4096;

ByteSpan BytesOf(absl::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// What the operator reads when a directory cannot be used.
absl::Status Unusable(const std::string& path, absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("the directory ", path, " cannot be used: ", why,
                   " (give this user write access and space there, or choose another directory)"));
}

std::string LockHolder(const File& lock) {
  const absl::StatusOr<uint64_t> size = lock.Size();
  if (!size.ok() || *size == 0 || *size > 32) return "another process";
  std::string text(*size, '\0');
  if (!lock.ReadAt(0, std::as_writable_bytes(std::span(text))).ok()) return "another process";
  return absl::StrCat("process ", absl::StripSuffix(text, "\n"));
}

absl::Status ProbeWriting(const std::string& path) {
  const std::string probe = absl::StrCat(path, "/probe");
  ASSIGN_OR_RETURN(File file, File::Open(probe, File::Mode::kCreate));
  const std::vector<std::byte> bytes(kProbeBytes);
  absl::Status status = file.WriteAt(0, {bytes});
  if (status.ok()) status = file.Sync();
  RemoveFile(probe).IgnoreError();
  return status;
}

}  // namespace

absl::Status ErrnoStatus(int error, absl::string_view what) {
  const std::string message =
      absl::StrCat(what, ": ", std::generic_category().message(error), " (errno ", error, ")");
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::Status OwnTrouble(const absl::Status& status) {
  return absl::IsUnavailable(status) ? absl::InternalError(status.message()) : status;
}

absl::StatusOr<File> File::Open(const std::string& path, Mode mode) {
  int flags = O_CLOEXEC | (mode == Mode::kRead ? O_RDONLY : O_RDWR);
  if (mode == Mode::kCreate) flags |= O_CREAT;
  const int fd = open(path.c_str(), flags, 0640);
  if (fd < 0) return ErrnoStatus(errno, "open");
  return File(fd);
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) close(fd_);
}

absl::Status File::ReadAt(uint64_t offset, MutableByteSpan into) const {
  while (!into.empty()) {
    const ssize_t n = pread(fd_, into.data(), into.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read");
    if (n == 0) return absl::OutOfRangeError("read past the end of a file");
    into = into.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status File::WriteAt(uint64_t offset, std::initializer_list<ByteSpan> parts) {
  for (ByteSpan part : parts) {
    while (!part.empty()) {
      const ssize_t n = pwrite(fd_, part.data(), part.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus(errno, "write");
      part = part.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
  }
  return absl::OkStatus();
}

absl::Status File::Truncate(uint64_t size) {
  if (ftruncate(fd_, static_cast<off_t>(size)) != 0) return ErrnoStatus(errno, "truncate");
  return absl::OkStatus();
}

absl::Status File::Sync() {
  if (fsync(fd_) != 0) return ErrnoStatus(errno, "sync");
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> File::Size() const {
  struct stat info {};
  if (fstat(fd_, &info) != 0) return ErrnoStatus(errno, "stat");
  return static_cast<uint64_t>(info.st_size);
}

void File::PunchHole(uint64_t offset, uint64_t size) {
  // Not every file system can; the space then comes back with the file.
  static_cast<void>(!fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               static_cast<off_t>(offset), static_cast<off_t>(size)));
}

absl::StatusOr<std::vector<std::byte>> ReadWholeFile(const std::string& path) {
  ASSIGN_OR_RETURN(const File file, File::Open(path, File::Mode::kRead));
  ASSIGN_OR_RETURN(const uint64_t size, file.Size());
  std::vector<std::byte> bytes(size);
  RETURN_IF_ERROR(file.ReadAt(0, bytes));
  return bytes;
}

absl::Status ReplaceFile(const std::string& directory, const std::string& name, ByteSpan bytes) {
  const std::string temporary = absl::StrCat(directory, "/tmp-", name);
  {
    ASSIGN_OR_RETURN(File file, File::Open(temporary, File::Mode::kCreate));
    absl::Status status = file.Truncate(0);
    if (status.ok()) status = file.WriteAt(0, {bytes});
    if (status.ok()) status = file.Sync();
    if (!status.ok()) {
      RemoveFile(temporary).IgnoreError();
      return status;
    }
  }
  if (rename(temporary.c_str(), absl::StrCat(directory, "/", name).c_str()) != 0) {
    return ErrnoStatus(errno, "rename");
  }
  return SyncDirectory(directory);
}

absl::Status RemoveFile(const std::string& path) {
  if (unlink(path.c_str()) != 0) return ErrnoStatus(errno, "remove");
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& directory) {
  ASSIGN_OR_RETURN(File file, File::Open(directory, File::Mode::kRead));
  return file.Sync();
}

absl::StatusOr<Space> SpaceOf(const std::string& directory) {
  struct statvfs info {};
  if (statvfs(directory.c_str(), &info) != 0) return ErrnoStatus(errno, "statvfs");
  return Space{uint64_t{info.f_bavail} * info.f_frsize, uint64_t{info.f_blocks} * info.f_frsize};
}

absl::StatusOr<OwnedDirectory> OwnedDirectory::Open(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return Unusable(path, error.message());
  absl::StatusOr<File> lock = File::Open(absl::StrCat(path, "/", kLockName), File::Mode::kCreate);
  if (!lock.ok()) return Unusable(path, lock.status().message());
  if (flock(lock->fd_, LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the directory ", path, " is in use by ", LockHolder(*lock),
        " (stop that process, or choose another directory: each process needs its own)"));
  }
  absl::Status status = lock->Truncate(0);
  if (status.ok()) status = lock->WriteAt(0, {BytesOf(absl::StrCat(getpid(), "\n"))});
  if (status.ok()) status = ProbeWriting(path);
  if (!status.ok()) return Unusable(path, status.message());
  return OwnedDirectory(path, *std::move(lock));
}

std::string OwnedDirectory::Path(absl::string_view name) const {
  return absl::StrCat(path_, "/", name);
}

absl::StatusOr<std::vector<std::string>> OwnedDirectory::List() const {
  std::error_code error;
  std::vector<std::string> names;
  std::filesystem::directory_iterator it(path_, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return ErrnoStatus(error.value(), "list");
  std::ranges::sort(names);
  return names;
}

}  // namespace loopserve::kvstore
