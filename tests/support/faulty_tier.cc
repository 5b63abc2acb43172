#include "tests/support/faulty_tier.h"

namespace loopserve::testing {

void FaultyTier::FailPuts(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  put_status_ = std::move(status);
}

void FaultyTier::FailGets(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  get_status_ = std::move(status);
}

void FaultyTier::FlipByte(int64_t at) {
  absl::MutexLock lock(&mutex_);
  flip_at_ = at;
}

void FaultyTier::HoldGets() {
  absl::MutexLock lock(&mutex_);
  hold_gets_ = true;
}

void FaultyTier::HoldPuts() {
  absl::MutexLock lock(&mutex_);
  hold_puts_ = true;
}

void FaultyTier::Release() {
  absl::MutexLock lock(&mutex_);
  hold_gets_ = hold_puts_ = false;
}

void FaultyTier::AwaitWaiting(int calls) {
  absl::MutexLock lock(&mutex_);
  const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return waiting_ >= calls; };
  mutex_.Await(absl::Condition(&enough));
}

void FaultyTier::SetAccepting(bool accepting) {
  absl::MutexLock lock(&mutex_);
  accepting_ = accepting;
}

int FaultyTier::puts() const {
  absl::MutexLock lock(&mutex_);
  return puts_;
}

int FaultyTier::gets() const {
  absl::MutexLock lock(&mutex_);
  return gets_;
}

bool FaultyTier::accepting() const {
  {
    absl::MutexLock lock(&mutex_);
    if (!accepting_) return false;
  }
  return tier_->accepting();
}

absl::Status FaultyTier::Put(const kvstore::PlaneKey& key, kvstore::SharedBytes bytes) {
  {
    absl::MutexLock lock(&mutex_);
    ++puts_;
    ++waiting_;
    const auto free = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !hold_puts_; };
    mutex_.Await(absl::Condition(&free));
    --waiting_;
    if (!put_status_.ok()) return put_status_;
  }
  return tier_->Put(key, std::move(bytes));
}

absl::StatusOr<kvstore::Entry> FaultyTier::Get(const kvstore::PlaneKey& key) {
  if (on_get_) on_get_();
  int64_t flip_at = -1;
  {
    absl::MutexLock lock(&mutex_);
    ++gets_;
    ++waiting_;
    const auto free = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !hold_gets_; };
    mutex_.Await(absl::Condition(&free));
    --waiting_;
    if (!get_status_.ok()) return get_status_;
    flip_at = flip_at_;
  }
  absl::StatusOr<kvstore::Entry> entry = tier_->Get(key);
  if (!entry.ok() || flip_at < 0) return entry;
  std::vector<std::byte> bytes(entry->bytes->begin(), entry->bytes->end());
  bytes[static_cast<size_t>(flip_at) % bytes.size()] ^= std::byte{1};
  entry->bytes = kvstore::Share(std::move(bytes));
  return entry;
}

}  // namespace loopserve::testing
