// The directory of a single router: a map in its memory.
#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/error.h"
#include "router/directory/session_directory.h"

namespace loopserve::router {
namespace {

using common::Epoch;
using common::SessionId;
using common::WorkerId;

absl::Status Stale(uint64_t current) {
  return common::MakeError(
      common::ErrorInfo{.reason = common::Reason::kStaleEpoch, .current_epoch = current},
      absl::StrCat("the session's epoch is ", current, " by now"));
}

class EmbeddedDirectory final : public SessionDirectory {
 public:
  absl::StatusOr<std::optional<Pin>> Find(const SessionId& id) const override {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(id);
    if (it == entries_.end()) return std::optional<Pin>();
    return std::optional<Pin>(it->second.pin);
  }

  absl::Status CompareAndSwap(const SessionId& id, std::optional<Epoch> expected,
                              std::optional<Pin> desired) override {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(id);
    const bool known = it != entries_.end();
    if (known != expected.has_value() || (known && it->second.pin.epoch != *expected)) {
      return Stale(known ? it->second.pin.epoch.value() : 0);
    }
    if (known) {
      Uncount(it->second.pin.worker);
      entries_.erase(it);
    }
    if (desired) Put(id, Entry{*std::move(desired), true});
    return absl::OkStatus();
  }

  void Learn(const WorkerId& reporter, std::span<const SessionSighting> sightings) override {
    absl::MutexLock lock(&mutex_);
    for (const SessionSighting& seen : sightings) {
      const auto it = entries_.find(seen.id);
      if (it != entries_.end()) {
        const Entry& have = it->second;
        const bool better = seen.epoch > have.pin.epoch ||
                            (seen.epoch == have.pin.epoch && seen.resident && !have.certain);
        if (!better) continue;
        Uncount(have.pin.worker);
        entries_.erase(it);
      }
      Put(seen.id, Entry{{reporter, seen.epoch}, seen.resident});
    }
  }

  DirectoryCounts counts() const override {
    absl::MutexLock lock(&mutex_);
    return {.sessions = entries_.size(), .by_worker = by_worker_};
  }

 private:
  struct Entry {
    Pin pin;
    bool certain = false;  // pinned by this router or held by the worker, not only heard of
  };

  void Put(const SessionId& id, Entry entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ++by_worker_[entry.pin.worker];
    entries_.insert_or_assign(id, std::move(entry));
  }
  void Uncount(const WorkerId& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = by_worker_.find(worker);
    if (--it->second == 0) by_worker_.erase(it);
  }

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<SessionId, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<WorkerId, size_t> by_worker_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<SessionDirectory>> directory_embedded() {
  return std::make_unique<EmbeddedDirectory>();
}

}  // namespace loopserve::router
