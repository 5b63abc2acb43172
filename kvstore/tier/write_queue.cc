#include "kvstore/tier/write_queue.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/thread.h"

namespace loopserve::kvstore {

WriteQueue::WriteQueue(Tier& tier, uint64_t max_bytes, std::function<void(const Written&)> written)
    : tier_(tier), max_bytes_(max_bytes), written_(std::move(written)) {
  thread_ = common::NamedThread(absl::StrCat("kv-", NameOf(tier.place()), "-put"),
                                [this](std::stop_token stop) { Run(stop); });
}

WriteQueue::~WriteQueue() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  order_.clear();
}

bool WriteQueue::Offer(const PlaneKey& key, SharedBytes bytes, Origin origin) {
  absl::MutexLock lock(&mutex_);
  if (items_.contains(key)) return true;
  if (bytes_ + bytes->size() > max_bytes_) return false;
  bytes_ += bytes->size();
  items_.emplace(key, Item{std::move(bytes), origin});
  order_.push_back(key);
  return true;
}

SharedBytes WriteQueue::Find(const PlaneKey& key) const {
  absl::MutexLock lock(&mutex_);
  const auto it = items_.find(key);
  return it == items_.end() ? nullptr : it->second.bytes;
}

void WriteQueue::Cancel(std::span<const PlaneKey> keys) {
  absl::MutexLock lock(&mutex_);
  for (const PlaneKey& key : keys) {
    const auto it = items_.find(key);
    if (it == items_.end()) continue;
    bytes_ -= it->second.bytes->size();
    items_.erase(it);
  }
}

bool WriteQueue::Drain(absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(this, &WriteQueue::Idle), deadline);
}

void WriteQueue::Run(std::stop_token) {
  while (true) {
    PlaneKey key;
    Item item;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &WriteQueue::Wakes));
      if (stopping_) return;
      key = order_.front();
      order_.pop_front();
      const auto it = items_.find(key);
      if (it == items_.end()) continue;
      item = it->second;
    }
    const bool attempted = tier_.accepting();
    const absl::Time begin = absl::Now();
    const absl::Status status = tier_.Put(key, item.bytes);
    if (written_ != nullptr) {
      written_({status, item.bytes->size(), absl::Now() - begin, item.origin, attempted});
    }
    bool cancelled = false;
    {
      absl::MutexLock lock(&mutex_);
      const auto it = items_.find(key);
      cancelled = it == items_.end() || it->second.bytes != item.bytes;
      if (!cancelled) {
        bytes_ -= item.bytes->size();
        items_.erase(it);
      }
    }
    if (cancelled) tier_.Erase({&key, 1}).status().IgnoreError();
  }
}

}  // namespace loopserve::kvstore
