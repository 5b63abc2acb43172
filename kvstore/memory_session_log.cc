#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "kvstore/session_log.h"
#include "kvstore/session_tombstones.h"

namespace loopserve::kvstore {
namespace {

class MemorySessionLog final : public SessionLog {
 public:
  absl::Status Put(const SessionRecord& record) override {
    absl::MutexLock lock(&mutex_);
    const auto it = records_.find(record.id.value());
    if (it != records_.end()) RETURN_IF_ERROR(Fence(SummaryOf(it->second), SummaryOf(record)));
    RETURN_IF_ERROR(erased_.Fence({record.id, record.epoch}));
    records_[record.id.value()] = record;
    erased_.Remove(record.id);
    return absl::OkStatus();
  }

  absl::StatusOr<SessionRecord> Get(const common::SessionId& id) override {
    absl::MutexLock lock(&mutex_);
    const auto it = records_.find(id.value());
    if (it == records_.end()) return NoSuchSession(erased_.Find(id));
    return it->second;
  }

  absl::Status Erase(const common::SessionRef& ref) override {
    absl::MutexLock lock(&mutex_);
    const auto it = records_.find(ref.id.value());
    if (it != records_.end()) RETURN_IF_ERROR(Fence(SummaryOf(it->second), ref));
    records_.erase(ref.id.value());
    const absl::Time now = absl::Now();
    erased_.Add({ref.id, ref.epoch, now}, now);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Summary>> List() override {
    absl::MutexLock lock(&mutex_);
    std::vector<Summary> all;
    for (const auto& [id, record] : records_) all.push_back(SummaryOf(record));
    return all;
  }

  absl::StatusOr<std::vector<Summary>> Page(const common::SessionId& after, size_t limit) override {
    absl::MutexLock lock(&mutex_);
    std::vector<Summary> page;
    for (auto it = records_.upper_bound(after.value()); it != records_.end() && page.size() < limit;
         ++it) {
      page.push_back(SummaryOf(it->second));
    }
    return page;
  }

  absl::StatusOr<size_t> Count() override {
    absl::MutexLock lock(&mutex_);
    return records_.size();
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, SessionRecord> records_ ABSL_GUARDED_BY(mutex_);  // in the order of pages
  Tombstones erased_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<SessionLog> CreateMemorySessionLog() {
  return std::make_unique<MemorySessionLog>();
}

}  // namespace loopserve::kvstore
