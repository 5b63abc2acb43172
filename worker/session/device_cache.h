// DeviceCache: which KV blocks on the device hold which tokens.
//
// Content addressed by kvstore::BlockKey, so sessions that share a prefix share its blocks. An
// entry is a block and the tokens in it: a full block, or the partly filled tail of some turn. The
// cache holds one reference to each block; an entry that nobody else references may be dropped at
// any time, least recently used first, when a running sequence needs the block.
//
// A match is verified token by token (a key is only a hash). A full block is handed out shared and
// must not be written. The last block of a match may be used in part: any cached block whose first
// tokens agree. It has to be copied (KvBlockPool::CopyBlock) before anything is appended. For the
// same reason a tail that a longer block begins with is not kept beside it.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/ids.h"
#include "kvstore/block_key.h"
#include "kvstore/block_pool.h"

namespace loopserve::worker {

struct DeviceMatch {
  std::vector<kvstore::BlockHandle> full;  // blocks 0 ... full.size() - 1 of the sequence, shared
  kvstore::BlockHandle tail;               // holds the following `tail_tokens`; copy before use
  int64_t tail_tokens = 0;
};

class DeviceCache final {
 public:
  // `pool` must outlive the cache.
  explicit DeviceCache(kvstore::KvBlockPool& pool);

  // The longest cached prefix of `tokens`. Touches what it found.
  DeviceMatch Match(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens);

  // Registers the blocks that hold `tokens`; the last may be partly filled. A block whose key is
  // cached already is not taken, nor is one whose bytes have been lost, or what follows it.
  void Insert(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens,
              std::span<const kvstore::BlockHandle> blocks);

  // Forgets the blocks of `tokens`, the partly filled one at its end included; returns how many.
  int64_t Forget(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens);

  // Drops unreferenced entries, least recently used first, until the pool has `wanted` free blocks
  // or nothing is left to drop. Returns how many it dropped.
  int64_t MakeFree(int64_t wanted);
  // Entries that MakeFree could drop now.
  int64_t unreferenced() const;
  // Of `blocks`, those that would be free or droppable if the caller let go of its handles.
  int64_t FreedBy(std::span<const kvstore::BlockHandle> blocks) const;
  int64_t size() const;
  void Clear();

 private:
  struct Entry {
    kvstore::BlockKey parent;
    std::vector<common::TokenId> tokens;
    kvstore::BlockHandle block;
    std::list<kvstore::BlockKey>::iterator lru;
  };

  // The entry of a key, if it really holds these tokens.
  Entry* Find(const kvstore::BlockKey& key, const kvstore::BlockKey& parent,
              std::span<const common::TokenId> tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether a block with these first tokens is cached already; drops shorter ones.
  bool Covered(const kvstore::BlockKey& parent, std::span<const common::TokenId> tokens)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MatchTail(const kvstore::BlockKey& parent, std::span<const common::TokenId> rest,
                 DeviceMatch& match) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The newest in `keys` was the deepest in its sequence: a prefix must outlive what continues it.
  void TouchAll(const std::vector<kvstore::BlockKey>& keys) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Erase(const kvstore::BlockKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  kvstore::KvBlockPool& pool_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<kvstore::BlockKey, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> cached_ ABSL_GUARDED_BY(mutex_);  // by block id
  // Entries by what they continue; most recently inserted last.
  absl::flat_hash_map<kvstore::BlockKey, std::vector<kvstore::BlockKey>> children_
      ABSL_GUARDED_BY(mutex_);
  std::list<kvstore::BlockKey> lru_ ABSL_GUARDED_BY(mutex_);  // least recently used first
};

}  // namespace loopserve::worker
