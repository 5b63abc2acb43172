#include <array>
#include <map>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/hash/hash.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/checksum.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "kvstore/file.h"
#include "kvstore/session_log.h"
#include "kvstore/session_tombstones.h"

namespace loopserve::kvstore {
namespace {

using common::MakeError;
using common::Reason;

constexpr absl::string_view kSuffix = ".session";
constexpr absl::string_view kTemporary = "tmp-";  // what ReplaceFile had not finished
constexpr char kErasedName[] = "erased";
constexpr size_t kErasedSlack = 128;  // appended tombstones beyond twice those that count

std::string FileName(const common::SessionId& id) {
  return absl::StrCat(common::HashString(id.value()).Hex(), kSuffix);
}

class DiskSessionLog final : public SessionLog {
 public:
  explicit DiskSessionLog(OwnedDirectory directory) : directory_(std::move(directory)) {}

  // Learns what is there. A damaged record is left alone: its session reads as damaged.
  absl::Status Scan() {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, directory_.List());
    RETURN_IF_ERROR(ScanErased());
    absl::MutexLock lock(&mutex_);
    for (const std::string& name : names) {
      if (absl::StartsWith(name, kTemporary)) {
        RemoveFile(directory_.Path(name)).IgnoreError();
        continue;
      }
      if (!absl::EndsWith(name, kSuffix)) continue;
      const absl::StatusOr<SessionRecord> record = ReadFile(name);
      if (!record.ok()) continue;
      if (!erased_.Fence({record->id, record->epoch}).ok()) {
        RemoveFile(directory_.Path(name)).IgnoreError();  // a crash came in between
        continue;
      }
      erased_.Remove(record->id);
      summaries_[record->id.value()] = SummaryOf(*record);
    }
    return absl::OkStatus();
  }

  absl::Status Put(const SessionRecord& record) override { return OwnTrouble(Write(record)); }

  // Needs no lock: a file is replaced at once.
  absl::StatusOr<SessionRecord> Get(const common::SessionId& id) override {
    absl::StatusOr<SessionRecord> record = ReadFile(FileName(id));
    if (absl::IsNotFound(record.status())) return NoSuchSession(ErasedUnder(id));
    if (!record.ok()) return OwnTrouble(record.status());
    if (record->id != id) return absl::DataLossError("the record is of another id");
    return record;
  }

  absl::Status Erase(const common::SessionRef& ref) override { return OwnTrouble(Remove(ref)); }

  absl::StatusOr<std::vector<Summary>> List() override {
    absl::MutexLock lock(&mutex_);
    std::vector<Summary> all;
    all.reserve(summaries_.size());
    for (const auto& [id, summary] : summaries_) all.push_back(summary);
    return all;
  }

  absl::StatusOr<std::vector<Summary>> Page(const common::SessionId& after, size_t limit) override {
    absl::MutexLock lock(&mutex_);
    std::vector<Summary> page;
    for (auto it = summaries_.upper_bound(after.value());
         it != summaries_.end() && page.size() < limit; ++it) {
      page.push_back(it->second);
    }
    return page;
  }

  absl::StatusOr<size_t> Count() override {
    absl::MutexLock lock(&mutex_);
    return summaries_.size();
  }

 private:
  absl::Mutex& WriterOf(const common::SessionId& id) {
    return writers_[absl::Hash<std::string>()(id.value()) % writers_.size()];
  }

  // The session's writer: nothing changes between the fence and the file's replacement.
  absl::Status Write(const SessionRecord& record) {
    const std::vector<std::byte> bytes = EncodeSessionRecord(record);
    const Summary summary = SummaryOf(record);
    absl::MutexLock writer(&WriterOf(record.id));
    {
      absl::MutexLock lock(&mutex_);
      const auto it = summaries_.find(record.id.value());
      if (it != summaries_.end()) RETURN_IF_ERROR(Fence(it->second, summary));
      RETURN_IF_ERROR(erased_.Fence({record.id, record.epoch}));
    }
    RETURN_IF_ERROR(CheckName(record.id));
    RETURN_IF_ERROR(ReplaceFile(directory_.path(), FileName(record.id), bytes));
    absl::MutexLock lock(&mutex_);
    summaries_[record.id.value()] = summary;
    erased_.Remove(record.id);
    return absl::OkStatus();
  }

  absl::Status Remove(const common::SessionRef& ref) {
    absl::MutexLock writer(&WriterOf(ref.id));
    {
      absl::MutexLock lock(&mutex_);
      const auto it = summaries_.find(ref.id.value());
      if (it != summaries_.end()) RETURN_IF_ERROR(Fence(it->second, ref));
    }
    absl::Status buried = Bury(ref);
    if (!buried.ok() && !absl::IsResourceExhausted(buried)) return buried;
    {
      absl::MutexLock lock(&mutex_);
      summaries_.erase(ref.id.value());
    }
    const absl::Status removed = RemoveFile(directory_.Path(FileName(ref.id)));
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
    // On a full disk the record's own space is what its tombstone needs.
    if (!buried.ok()) RETURN_IF_ERROR(Bury(ref));
    return SyncDirectory(directory_.path());
  }

  std::optional<common::Epoch> ErasedUnder(const common::SessionId& id) const {
    absl::MutexLock lock(&mutex_);
    return erased_.Find(id);
  }

  // What stands behind the first damaged tombstone is lost, so a damaged file is written anew.
  absl::Status ScanErased() {
    absl::MutexLock burial(&burial_);
    const absl::StatusOr<std::vector<std::byte>> bytes =
        ReadWholeFile(directory_.Path(kErasedName));
    if (absl::IsNotFound(bytes.status())) return absl::OkStatus();
    RETURN_IF_ERROR(bytes.status());
    const absl::Time now = absl::Now();
    const std::vector<Tombstone> stones = DecodeTombstones(*bytes, erased_bytes_);
    {
      absl::MutexLock lock(&mutex_);
      for (const Tombstone& stone : stones) erased_.Add(stone, now);
    }
    erased_written_ = stones.size();
    return erased_bytes_ == bytes->size() ? absl::OkStatus() : RewriteErased();
  }

  // Remembers durably that the session was deleted.
  absl::Status Bury(const common::SessionRef& ref) {
    absl::MutexLock burial(&burial_);
    const absl::Time now = absl::Now();
    const Tombstone stone{ref.id, ref.epoch, now};
    size_t count = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (!erased_.Fence(ref).ok()) return absl::OkStatus();  // it is remembered
      count = erased_.size();
    }
    if (erased_written_ > 2 * count + kErasedSlack) RETURN_IF_ERROR(RewriteErased());
    RETURN_IF_ERROR(AppendErased(EncodeTombstone(stone)));
    absl::MutexLock lock(&mutex_);
    erased_.Add(stone, now);
    return absl::OkStatus();
  }

  absl::Status AppendErased(ByteSpan bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(burial_) {
    ASSIGN_OR_RETURN(File file, File::Open(directory_.Path(kErasedName), File::Mode::kCreate));
    absl::Status status = file.WriteAt(erased_bytes_, {bytes});
    if (status.ok()) status = file.Sync();
    if (!status.ok()) {
      file.Truncate(erased_bytes_).IgnoreError();
      return status;
    }
    erased_bytes_ += bytes.size();
    ++erased_written_;
    return absl::OkStatus();
  }

  absl::Status RewriteErased() ABSL_EXCLUSIVE_LOCKS_REQUIRED(burial_) {
    std::vector<Tombstone> stones;
    {
      absl::MutexLock lock(&mutex_);
      stones = erased_.All();
    }
    std::vector<std::byte> bytes;
    for (const Tombstone& stone : stones) {
      const std::vector<std::byte> one = EncodeTombstone(stone);
      bytes.insert(bytes.end(), one.begin(), one.end());
    }
    RETURN_IF_ERROR(ReplaceFile(directory_.path(), kErasedName, bytes));
    erased_bytes_ = bytes.size();
    erased_written_ = stones.size();
    return absl::OkStatus();
  }

  // File names are hashes: an id that was made to share another's never replaces its record.
  absl::Status CheckName(const common::SessionId& id) const {
    {
      absl::MutexLock lock(&mutex_);
      if (summaries_.contains(id.value())) return absl::OkStatus();
    }
    const absl::StatusOr<SessionRecord> there = ReadFile(FileName(id));
    if (!there.ok() || there->id == id) return absl::OkStatus();
    return MakeError(Reason::kSessionExists, "the id's record would replace another session's");
  }

  absl::StatusOr<SessionRecord> ReadFile(const std::string& name) const {
    ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadWholeFile(directory_.Path(name)));
    return DecodeSessionRecord(bytes);
  }

  const OwnedDirectory directory_;
  // Held while a session's file is replaced, which waits for the disk: sessions that do not share
  // one wait together. Before burial_, and that before mutex_.
  std::array<absl::Mutex, 16> writers_;
  absl::Mutex burial_;  // held while tombstones are written
  uint64_t erased_bytes_ ABSL_GUARDED_BY(burial_) = 0;
  size_t erased_written_ ABSL_GUARDED_BY(burial_) = 0;
  mutable absl::Mutex mutex_;
  std::map<std::string, Summary> summaries_ ABSL_GUARDED_BY(mutex_);  // in the order of pages
  Tombstones erased_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<SessionLog>> OpenDiskSessionLog(const std::string& directory) {
  ASSIGN_OR_RETURN(OwnedDirectory owned, OwnedDirectory::Open(directory));
  auto log = std::make_unique<DiskSessionLog>(std::move(owned));
  RETURN_IF_ERROR(log->Scan());
  return log;
}

}  // namespace loopserve::kvstore
