// The host tier: entries in this process's memory, least recently used ones leave first.
#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/eviction.h"
#include "kvstore/tier/registry.h"

namespace loopserve::kvstore {
namespace {

class HostTier final : public Tier {
 public:
  HostTier(uint64_t capacity_bytes, std::shared_ptr<HostArena> arena)
      : capacity_bytes_(capacity_bytes), arena_(std::move(arena)) {}
  Place place() const override { return Place::kHost; }

  absl::Status Put(const PlaneKey& key, SharedBytes bytes) override {
    if (bytes->size() > capacity_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "an entry of ", bytes->size(), " bytes in a host tier of ", capacity_bytes_));
    }
    if (arena_ != nullptr && !bytes->in_arena() && !Contains(key)) bytes = ToArena(bytes);
    std::vector<Eviction> evicted;
    {
      absl::MutexLock lock(&mutex_);
      order_.Use(key);
      if (!entries_.emplace(key, bytes).second) return absl::OkStatus();
      used_bytes_ += bytes->size();
      // The newcomer is the most recently used, so it is never its own victim.
      while (used_bytes_ > capacity_bytes_) evicted.push_back(EvictOne());
    }
    if (listener_ != nullptr) {
      for (const Eviction& eviction : evicted) listener_(eviction);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Entry> Get(const PlaneKey& key) override {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(key);
    if (it == entries_.end()) return absl::NotFoundError("not in host memory");
    order_.Use(key);
    return Entry{it->second, Place::kHost};
  }

  bool Contains(const PlaneKey& key) override {
    absl::MutexLock lock(&mutex_);
    return entries_.contains(key);
  }

  absl::StatusOr<Erased> Erase(std::span<const PlaneKey> keys) override {
    absl::MutexLock lock(&mutex_);
    Erased erased;
    for (const PlaneKey& key : keys) {
      const auto it = entries_.find(key);
      if (it == entries_.end()) continue;
      ++erased.entries;
      erased.bytes += it->second->size();
      used_bytes_ -= it->second->size();
      order_.Remove(key);
      entries_.erase(it);
    }
    return erased;
  }

  void Touch(std::span<const PlaneKey> keys) override {
    absl::MutexLock lock(&mutex_);
    for (const PlaneKey& key : keys) {
      if (entries_.contains(key)) order_.Use(key);
    }
  }

  Usage usage() const override {
    absl::MutexLock lock(&mutex_);
    return {used_bytes_, capacity_bytes_, entries_.size()};
  }

  void SetEvictionListener(EvictionListener listener) override { listener_ = std::move(listener); }

 private:
  // What came up from a slower tier lies anywhere; the next restore finds it where it is fast.
  SharedBytes ToArena(const SharedBytes& bytes) const {
    HostBuffer buffer = HostBuffer::Take(arena_, bytes->size());
    if (!buffer.in_arena()) return bytes;
    std::ranges::copy(*bytes, buffer.data());
    const ByteSpan all = buffer.span();
    return std::make_shared<const EntryBytes>(std::move(buffer), all);
  }

  Eviction EvictOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const PlaneKey key = *order_.Victim();
    const auto it = entries_.find(key);
    Eviction eviction{key, it->second->size(), std::move(it->second)};
    used_bytes_ -= eviction.size;
    order_.Remove(key);
    entries_.erase(it);
    return eviction;
  }

  const uint64_t capacity_bytes_;
  const std::shared_ptr<HostArena> arena_;
  EvictionListener listener_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<PlaneKey, SharedBytes> entries_ ABSL_GUARDED_BY(mutex_);
  EvictionOrder order_ ABSL_GUARDED_BY(mutex_);
  uint64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tier>> tier_host(const TierOptions& options, common::Logger&) {
  if (options.host_bytes == 0) return nullptr;
  return std::make_unique<HostTier>(options.host_bytes, options.host_arena);
}

}  // namespace loopserve::kvstore
