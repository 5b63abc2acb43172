#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "kvstore/session_log.h"

namespace loopserve::kvstore {
namespace {

using common::MakeError;
using common::Reason;

class MemorySessionLog final : public SessionLog {
 public:
  absl::Status Put(const SessionRecord& record) override {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Fence({record.id, record.epoch}));
    records_[record.id.value()] = record;
    return absl::OkStatus();
  }

  absl::StatusOr<SessionRecord> Get(const common::SessionId& id) override {
    absl::MutexLock lock(&mutex_);
    const auto it = records_.find(id.value());
    if (it == records_.end()) {
      return MakeError(Reason::kSessionNotFound, "there is no session of this id");
    }
    return it->second;
  }

  absl::Status Erase(const common::SessionRef& ref) override {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Fence(ref));
    records_.erase(ref.id.value());
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Summary>> List() override {
    absl::MutexLock lock(&mutex_);
    std::vector<Summary> all;
    for (const auto& [id, record] : records_) all.push_back(SummaryOf(record));
    return all;
  }

 private:
  absl::Status Fence(const common::SessionRef& ref) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = records_.find(ref.id.value());
    if (it == records_.end() || it->second.epoch <= ref.epoch) return absl::OkStatus();
    return MakeError(
        {.reason = Reason::kStaleEpoch, .current_epoch = it->second.epoch.value()},
        absl::StrCat("epoch ", ref.epoch.value(), " is older than ", it->second.epoch.value()));
  }

  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, SessionRecord> records_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<SessionLog> CreateMemorySessionLog() {
  return std::make_unique<MemorySessionLog>();
}

}  // namespace loopserve::kvstore
