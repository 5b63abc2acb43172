#include <array>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/checksum.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "kvstore/file.h"
#include "kvstore/session_log.h"

namespace loopserve::kvstore {
namespace {

using common::MakeError;
using common::Reason;

constexpr absl::string_view kSuffix = ".session";

std::string FileName(const common::SessionId& id) {
  return absl::StrCat(common::HashString(id.value()).Hex(), kSuffix);
}

absl::Status NotFound() {
  return MakeError(Reason::kSessionNotFound, "there is no session of this id");
}

class DiskSessionLog final : public SessionLog {
 public:
  explicit DiskSessionLog(OwnedDirectory directory) : directory_(std::move(directory)) {}

  // Learns what is there. A damaged record is left alone: its session reads as damaged.
  absl::Status Scan() {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, directory_.List());
    absl::MutexLock lock(&mutex_);
    for (const std::string& name : names) {
      if (!absl::EndsWith(name, kSuffix)) continue;
      const absl::StatusOr<SessionRecord> record = ReadFile(name);
      if (record.ok()) summaries_[record->id.value()] = SummaryOf(*record);
    }
    return absl::OkStatus();
  }

  absl::Status Put(const SessionRecord& record) override {
    const std::vector<std::byte> bytes = EncodeSessionRecord(record);
    absl::MutexLock writer(&WriterOf(record.id));
    RETURN_IF_ERROR(Fence({record.id, record.epoch}));
    RETURN_IF_ERROR(CheckName(record.id));
    RETURN_IF_ERROR(ReplaceFile(directory_.path(), FileName(record.id), bytes));
    absl::MutexLock lock(&mutex_);
    summaries_[record.id.value()] = SummaryOf(record);
    return absl::OkStatus();
  }

  // Needs no lock: a file is replaced at once.
  absl::StatusOr<SessionRecord> Get(const common::SessionId& id) override {
    absl::StatusOr<SessionRecord> record = ReadFile(FileName(id));
    if (absl::IsNotFound(record.status())) return NotFound();
    if (record.ok() && record->id != id) return absl::DataLossError("the record is of another id");
    return record;
  }

  absl::Status Erase(const common::SessionRef& ref) override {
    absl::MutexLock writer(&WriterOf(ref.id));
    RETURN_IF_ERROR(Fence(ref));
    {
      absl::MutexLock lock(&mutex_);
      summaries_.erase(ref.id.value());
    }
    const absl::Status removed = RemoveFile(directory_.Path(FileName(ref.id)));
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
    return SyncDirectory(directory_.path());
  }

  absl::StatusOr<std::vector<Summary>> List() override {
    absl::MutexLock lock(&mutex_);
    std::vector<Summary> all;
    for (const auto& [id, summary] : summaries_) all.push_back(summary);
    return all;
  }

 private:
  absl::Mutex& WriterOf(const common::SessionId& id) {
    return writers_[absl::Hash<std::string>()(id.value()) % writers_.size()];
  }

  // Called by the session's writer, so that nothing changes until the file is replaced.
  absl::Status Fence(const common::SessionRef& ref) const {
    absl::MutexLock lock(&mutex_);
    const auto it = summaries_.find(ref.id.value());
    if (it == summaries_.end() || it->second.epoch <= ref.epoch) return absl::OkStatus();
    return MakeError(
        {.reason = Reason::kStaleEpoch, .current_epoch = it->second.epoch.value()},
        absl::StrCat("epoch ", ref.epoch.value(), " is older than ", it->second.epoch.value()));
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
  // one wait together. Before mutex_.
  std::array<absl::Mutex, 16> writers_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, Summary> summaries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<SessionLog>> OpenDiskSessionLog(const std::string& directory) {
  ASSIGN_OR_RETURN(OwnedDirectory owned, OwnedDirectory::Open(directory));
  auto log = std::make_unique<DiskSessionLog>(std::move(owned));
  RETURN_IF_ERROR(log->Scan());
  return log;
}

}  // namespace loopserve::kvstore
