// The directory of a single router: a map in its memory, with its entries in the order of their
// last use and, where they have a ttl, of their end.
#include <algorithm>
#include <list>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/node_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/error.h"
#include "router/directory/rendezvous.h"
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
  explicit EmbeddedDirectory(const DirectoryOptions& options) : options_(options) {}

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
    if (desired) {
      Put(id, *std::move(desired));
    } else if (known) {
      Erase(it);
    }
    return absl::OkStatus();
  }

  void Learn(const WorkerId& reporter, std::span<const SessionSighting> sightings) override {
    absl::MutexLock lock(&mutex_);
    for (const SessionSighting& seen : sightings) {
      const auto it = entries_.find(seen.id);
      const Pin pin{reporter, seen.epoch, seen.owned};
      if (it == entries_.end() || IsBetter(seen.id, pin, it->second.pin)) Put(seen.id, pin);
      SetLifetimeOf(*entries_.find(seen.id), seen.lifetime);
    }
  }

  void SetLifetime(const SessionId& id, const Lifetime& lifetime) override {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(id);
    if (it != entries_.end()) SetLifetimeOf(*it, lifetime);
  }

  void Touch(const SessionId& id, absl::Time now) override {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(id);
    if (it == entries_.end()) return;
    SetLifetimeOf(*it, {.used = now, .ttl = it->second.lifetime.ttl});
    by_use_.splice(by_use_.end(), by_use_, it->second.use);
  }

  TrimmedPins Trim(absl::Time now, const absl::flat_hash_set<SessionId>& in_use) override {
    TrimmedPins trimmed;
    absl::MutexLock lock(&mutex_);
    for (auto it = by_end_.begin(); it != by_end_.end() && it->first <= now;) {
      const SessionId& id = *(it++)->second;  // on, before the entry takes its place along
      if (!in_use.contains(id)) trimmed.expired.push_back(Erase(entries_.find(id)));
    }
    for (auto it = by_use_.begin(); it != by_use_.end() && entries_.size() > options_.max_pins;) {
      const SessionId& id = **(it++);
      if (!in_use.contains(id)) trimmed.evicted.push_back(Erase(entries_.find(id)));
    }
    return trimmed;
  }

  DirectoryCounts counts() const override {
    absl::MutexLock lock(&mutex_);
    return {.sessions = entries_.size(), .by_worker = by_worker_};
  }

 private:
  struct Entry {
    Pin pin;
    Lifetime lifetime = {};
    std::list<const SessionId*>::iterator use = {};
  };
  using Entries = absl::node_hash_map<SessionId, Entry>;  // keys stay where they are
  using End = std::pair<absl::Time, const SessionId*>;

  static bool IsBetter(const SessionId& id, const Pin& pin, const Pin& than) {
    if (pin.epoch != than.epoch) return pin.epoch > than.epoch;
    if (pin.certain || than.certain) return !than.certain;
    return RendezvousWeight(id.value(), pin.worker) > RendezvousWeight(id.value(), than.worker);
  }
  static bool Ends(const Lifetime& lifetime) { return lifetime.ttl > absl::ZeroDuration(); }
  static End EndOf(const Entries::value_type& entry) {
    return {entry.second.lifetime.used + entry.second.lifetime.ttl, &entry.first};
  }

  void Put(const SessionId& id, Pin pin) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto [it, is_new] = entries_.try_emplace(id);
    Entry& entry = it->second;
    if (is_new) entry.use = by_use_.insert(by_use_.end(), &it->first);
    if (!is_new) Uncount(entry.pin.worker);
    ++by_worker_[pin.worker];
    entry.pin = std::move(pin);
  }
  Pin Erase(Entries::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Pin pin = std::move(it->second.pin);
    Uncount(pin.worker);
    by_use_.erase(it->second.use);
    by_end_.erase(EndOf(*it));
    entries_.erase(it);
    return pin;
  }
  void Uncount(const WorkerId& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = by_worker_.find(worker);
    if (--it->second == 0) by_worker_.erase(it);
  }
  void SetLifetimeOf(Entries::value_type& entry, const Lifetime& lifetime)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Lifetime& ours = entry.second.lifetime;
    by_end_.erase(EndOf(entry));
    ours = {.used = std::max(ours.used, lifetime.used), .ttl = lifetime.ttl};
    if (Ends(ours)) by_end_.insert(EndOf(entry));
  }

  const DirectoryOptions options_;
  mutable absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  std::list<const SessionId*> by_use_ ABSL_GUARDED_BY(mutex_);  // of all, longest ago first
  std::set<End> by_end_ ABSL_GUARDED_BY(mutex_);                // of those with a ttl
  absl::flat_hash_map<WorkerId, size_t> by_worker_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<SessionDirectory>> directory_embedded(
    const DirectoryOptions& options) {
  return std::make_unique<EmbeddedDirectory>(options);
}

}  // namespace loopserve::router
