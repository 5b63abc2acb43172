// In-memory stand-ins for the durable log and the tiers, with the contracts of the real ones.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/error.h"
#include "kvstore/session_log.h"
#include "kvstore/session_tombstones.h"
#include "kvstore/store.h"

namespace loopserve::testing {

class FakeSessionLog final : public kvstore::SessionLog {
 public:
  absl::Status Put(const kvstore::SessionRecord& record) override {
    absl::MutexLock lock(&mutex_);
    ++puts_;
    if (!fail_.ok()) return fail_;
    auto it = records_.find(record.id.value());
    if (it != records_.end()) {
      const absl::Status fence =
          kvstore::Fence(kvstore::SummaryOf(it->second), kvstore::SummaryOf(record));
      if (!fence.ok()) return fence;
    }
    const auto erased = erased_.find(record.id.value());
    if (erased != erased_.end() && record.epoch <= erased->second)
      return kvstore::StaleEpoch(erased->second);
    records_[record.id.value()] = record;
    return absl::OkStatus();
  }
  absl::StatusOr<kvstore::SessionRecord> Get(const common::SessionId& id) override {
    absl::MutexLock lock(&mutex_);
    ++gets_;
    if (!fail_.ok()) return fail_;
    auto it = records_.find(id.value());
    if (it == records_.end()) {
      common::ErrorInfo info;
      info.reason = common::Reason::kSessionNotFound;
      const auto erased = erased_.find(id.value());
      if (erased != erased_.end()) info.current_epoch = erased->second.value();
      return common::MakeError(info, "none");
    }
    return it->second;
  }
  absl::Status Erase(const common::SessionRef& ref) override {
    absl::MutexLock lock(&mutex_);
    if (!fail_.ok()) return fail_;
    auto it = records_.find(ref.id.value());
    if (it != records_.end()) {
      const absl::Status fence = kvstore::Fence(kvstore::SummaryOf(it->second), ref);
      if (!fence.ok()) return fence;
      records_.erase(it);
    }
    erased_[ref.id.value()] = std::max(erased_[ref.id.value()], ref.epoch);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<Summary>> List() override {
    absl::MutexLock lock(&mutex_);
    if (!fail_.ok()) return fail_;
    std::vector<Summary> all;
    for (const auto& [id, record] : records_) all.push_back(kvstore::SummaryOf(record));
    return all;
  }

  void SetDropListener(DropListener listener) override {
    absl::MutexLock lock(&mutex_);
    listener_ = std::move(listener);
  }
  // As when the session proves to be deleted elsewhere.
  void DropCopy(const kvstore::SessionRecord& record) {
    DropListener listener;
    {
      absl::MutexLock lock(&mutex_);
      listener = listener_;
      records_.erase(record.id.value());
    }
    if (listener) listener(record);
  }

  // Every later call fails with this; OkStatus ends it.
  void FailWith(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    fail_ = std::move(status);
  }
  int puts() const {
    absl::MutexLock lock(&mutex_);
    return puts_;
  }
  int gets() const {
    absl::MutexLock lock(&mutex_);
    return gets_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, kvstore::SessionRecord> records_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, common::Epoch> erased_ ABSL_GUARDED_BY(mutex_);
  DropListener listener_ ABSL_GUARDED_BY(mutex_);
  absl::Status fail_ ABSL_GUARDED_BY(mutex_);
  int puts_ ABSL_GUARDED_BY(mutex_) = 0;
  int gets_ ABSL_GUARDED_BY(mutex_) = 0;
};

// A store of one tier: what `place` says. Restores run at once, or when ReleaseRestores says so.
class FakeKvStore final : public kvstore::KvStore {
 public:
  explicit FakeKvStore(kvstore::KvBlockPool& pool, kvstore::Place place = kvstore::Place::kHost)
      : pool_(pool), place_(place) {}
  ~FakeKvStore() override { ReleaseRestores(); }

  int64_t Lookup(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens,
                 int64_t from_token) override {
    absl::MutexLock lock(&mutex_);
    ++lookups_;
    int64_t end = from_token;
    for (const Piece& piece : PiecesOf(root, tokens)) {
      if (piece.begin < from_token) continue;
      if (!blocks_.contains(piece.key)) break;
      end = piece.begin + static_cast<int64_t>(piece.tokens.size());
    }
    return end;
  }

  void Restore(RestoreRequest request, RestoreDone done) override {
    {
      absl::MutexLock lock(&mutex_);
      if (hold_) {
        held_.emplace_back(std::move(request), std::move(done));
        return;
      }
    }
    Load(std::move(request), std::move(done));
  }

  void Save(SaveRequest request, absl::AnyInvocable<void(absl::Status)> done) override {
    {
      absl::MutexLock lock(&mutex_);
      ++saves_;
      size_t index = 0;
      for (const Piece& piece : PiecesOf(request.root, request.tokens, /*any_tail=*/true)) {
        std::vector<std::byte> bytes(pool_.shape().block_bytes());
        pool_.ReadBlock(request.blocks[index++].id(), bytes).IgnoreError();
        blocks_.try_emplace(piece.key, std::move(bytes));
      }
      request.blocks.clear();
    }
    done(absl::OkStatus());
  }

  absl::Status Forget(const kvstore::BlockKey& root,
                      std::span<const common::TokenId> tokens) override {
    absl::MutexLock lock(&mutex_);
    for (const Piece& piece : PiecesOf(root, tokens, true)) blocks_.erase(piece.key);
    return absl::OkStatus();
  }
  void Park(const kvstore::BlockKey&, std::vector<common::TokenId> tokens) override {
    absl::MutexLock lock(&mutex_);
    parked_ = std::move(tokens);
  }
  void Prefetch(const kvstore::BlockKey&, std::vector<common::TokenId> tokens) override {
    absl::MutexLock lock(&mutex_);
    prefetched_ = std::move(tokens);
  }
  absl::Status Flush(absl::Duration) override { return absl::OkStatus(); }
  std::array<kvstore::Usage, 4> usage() const override { return {}; }

  // Block `index` (in order of tokens) turns out to be damaged when it is read.
  void Damage(int64_t index) {
    absl::MutexLock lock(&mutex_);
    damaged_ = index;
  }
  void HoldRestores() {
    absl::MutexLock lock(&mutex_);
    hold_ = true;
  }
  void ReleaseRestores() {
    std::vector<std::pair<RestoreRequest, RestoreDone>> held;
    {
      absl::MutexLock lock(&mutex_);
      hold_ = false;
      held.swap(held_);
    }
    for (auto& [request, done] : held) Load(std::move(request), std::move(done));
  }
  size_t held() const {
    absl::MutexLock lock(&mutex_);
    return held_.size();
  }
  size_t size() const {
    absl::MutexLock lock(&mutex_);
    return blocks_.size();
  }
  int lookups() const {
    absl::MutexLock lock(&mutex_);
    return lookups_;
  }
  int saves() const {
    absl::MutexLock lock(&mutex_);
    return saves_;
  }
  std::vector<common::TokenId> parked() const {
    absl::MutexLock lock(&mutex_);
    return parked_;
  }
  std::vector<common::TokenId> prefetched() const {
    absl::MutexLock lock(&mutex_);
    return prefetched_;
  }

 private:
  struct Piece {
    int64_t begin = 0;
    std::span<const common::TokenId> tokens;
    kvstore::BlockKey key;
  };

  // Full blocks, then the longest stored tail (or, for a save, the tail as it is).
  std::vector<Piece> PiecesOf(const kvstore::BlockKey& root,
                              std::span<const common::TokenId> tokens, bool any_tail = false) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const size_t size = static_cast<size_t>(pool_.shape().block_tokens);
    std::vector<Piece> pieces;
    kvstore::BlockKey parent = root;
    size_t begin = 0;
    for (; begin + size <= tokens.size(); begin += size) {
      parent = ChildKey(parent, tokens.subspan(begin, size));
      pieces.push_back({static_cast<int64_t>(begin), tokens.subspan(begin, size), parent});
    }
    for (size_t length = tokens.size() - begin; length > 0; --length) {
      const auto tail = tokens.subspan(begin, length);
      const kvstore::BlockKey key = ChildKey(parent, tail);
      if (!any_tail && !blocks_.contains(key)) continue;
      pieces.push_back({static_cast<int64_t>(begin), tail, key});
      break;
    }
    return pieces;
  }

  void Load(RestoreRequest request, RestoreDone done) {
    kvstore::RestoreResult result;
    {
      absl::MutexLock lock(&mutex_);
      const auto tokens = std::span(request.tokens).first(static_cast<size_t>(request.to_token));
      size_t index = 0;
      for (const Piece& piece : PiecesOf(request.root, tokens)) {
        if (piece.begin < request.from_token) continue;
        if (piece.begin / pool_.shape().block_tokens == damaged_) {
          result.short_reason = "damaged";
          break;
        }
        auto it = blocks_.find(piece.key);
        if (it == blocks_.end()) {
          result.short_reason = "miss";
          break;
        }
        pool_.WriteBlock(request.blocks[index++].id(), it->second).IgnoreError();
        result.restored_tokens += static_cast<int64_t>(piece.tokens.size());
        result.bytes += it->second.size();
      }
      result.tokens_by_place[static_cast<size_t>(place_)] =
          static_cast<uint64_t>(result.restored_tokens);
    }
    request.blocks.clear();
    done(std::move(result));
  }

  kvstore::KvBlockPool& pool_;
  const kvstore::Place place_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<kvstore::BlockKey, std::vector<std::byte>> blocks_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<RestoreRequest, RestoreDone>> held_ ABSL_GUARDED_BY(mutex_);
  bool hold_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t damaged_ ABSL_GUARDED_BY(mutex_) = -1;
  int lookups_ ABSL_GUARDED_BY(mutex_) = 0;
  int saves_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<common::TokenId> parked_ ABSL_GUARDED_BY(mutex_);
  std::vector<common::TokenId> prefetched_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::testing
