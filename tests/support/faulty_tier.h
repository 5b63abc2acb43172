// A tier with faults: decorates a real one and misbehaves as told, at the very call, every time.
// Thread rule: all calls are safe from any thread.
#pragma once

#include <functional>
#include <memory>

#include "absl/synchronization/mutex.h"
#include "kvstore/tier/tier.h"

namespace loopserve::testing {

class FaultyTier final : public kvstore::Tier {
 public:
  explicit FaultyTier(std::unique_ptr<kvstore::Tier> tier) : tier_(std::move(tier)) {}

  // Every later Put (Get) fails with `status`; ok ends it.
  void FailPuts(absl::Status status);
  void FailGets(absl::Status status);
  // Later Gets deliver bytes with one bit of byte `at` flipped; -1 ends it.
  void FlipByte(int64_t at);
  // Later Gets (Puts) wait until Release; Waiting tells how many do.
  void HoldGets();
  void HoldPuts();
  void Release();
  void AwaitWaiting(int calls);
  // Called first in every later Get (Erase), on the caller's thread. To be set before there are
  // any.
  void OnGet(std::function<void()> call) { on_get_ = std::move(call); }
  void OnErase(std::function<void()> call) { on_erase_ = std::move(call); }
  void SetAccepting(bool accepting);
  int puts() const;
  int gets() const;

  kvstore::Tier& real() { return *tier_; }

  kvstore::Place place() const override { return tier_->place(); }
  absl::Status Put(const kvstore::PlaneKey& key, kvstore::SharedBytes bytes) override;
  absl::StatusOr<kvstore::Entry> Get(const kvstore::PlaneKey& key) override;
  bool Contains(const kvstore::PlaneKey& key) override { return tier_->Contains(key); }
  absl::StatusOr<kvstore::Erased> Erase(std::span<const kvstore::PlaneKey> keys) override {
    if (on_erase_) on_erase_();
    return tier_->Erase(keys);
  }
  void Touch(std::span<const kvstore::PlaneKey> keys) override { tier_->Touch(keys); }
  bool accepting() const override;
  absl::StatusOr<int64_t> Lookup(const kvstore::BlockKey& root,
                                 std::span<const common::TokenId> tokens,
                                 int block_tokens) override {
    return tier_->Lookup(root, tokens, block_tokens);
  }
  kvstore::Usage usage() const override { return tier_->usage(); }
  void SetEvictionListener(kvstore::EvictionListener listener) override {
    tier_->SetEvictionListener(std::move(listener));
  }

 private:
  const std::unique_ptr<kvstore::Tier> tier_;
  std::function<void()> on_get_;
  std::function<void()> on_erase_;
  mutable absl::Mutex mutex_;
  absl::Status put_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status get_status_ ABSL_GUARDED_BY(mutex_);
  int64_t flip_at_ ABSL_GUARDED_BY(mutex_) = -1;
  bool hold_gets_ ABSL_GUARDED_BY(mutex_) = false;
  bool hold_puts_ ABSL_GUARDED_BY(mutex_) = false;
  bool accepting_ ABSL_GUARDED_BY(mutex_) = true;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  int puts_ ABSL_GUARDED_BY(mutex_) = 0;
  int gets_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace loopserve::testing
