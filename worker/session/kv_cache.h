// KvCache: finds, brings back and keeps the KV of token sequences for the engine.
//
// It stands over the device's blocks (DeviceCache over KvBlockPool) and the tiers (KvStore):
//
//   Acquire   blocks for a sequence: shared ones for the cached prefix, fresh ones for the rest
//   Restore   what a tier holds beyond the device, in the background, into the fresh blocks
//   Keep      at the end: register the blocks on the device and save them to the tiers
//
// All KV named here is content addressed: it knows no sessions.
//
// Thread rule: all calls are safe from any thread. Acquire, Allocate and Keep do not block on I/O;
// Restore, Forget, Park and Prefetch may, and belong on an I/O thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kvstore/block_key.h"
#include "kvstore/block_pool.h"
#include "kvstore/kv_metrics.h"
#include "kvstore/store.h"
#include "worker/session/device_cache.h"
#include "worker/session/scrape_link.h"

namespace loopserve::worker {

// The blocks of one sequence and how many of its first tokens' KV they hold.
struct AcquiredKv {
  std::vector<kvstore::BlockHandle> blocks;
  int64_t device_tokens = 0;
};

class KvCache final {
 public:
  struct Options {
    std::string model_fingerprint;     // ModelConfig::fingerprint
    std::string policy_tag = "exact";  // see PolicyTag
    std::string codec = "bf16";        // of the tiers: tells the precision of what is restored
  };
  // What KV is computed with (Backend::activation_format) is part of a cache's root key: blocks of
  // 16 bits, of 8 and of E4M3 are not mixed.
  static std::string PolicyTag(absl::string_view activation_format) {
    return activation_format == "16" ? "exact" : absl::StrCat("activations-", activation_format);
  }
  // `store` may be null: the device is then the only place. All must outlive the cache.
  KvCache(Options options, kvstore::KvBlockPool& pool, kvstore::KvStore* store,
          kvstore::KvMetrics& metrics);

  kvstore::KvBlockPool& pool() { return pool_; }
  DeviceCache& device() { return device_; }
  bool has_store() const { return store_ != nullptr; }
  // Bits per value of KV as the device holds it, and of what came from a tier.
  int device_bits() const { return kvstore::HasScales(pool_.shape().dtype) ? 8 : 16; }
  int restored_bits() const { return options_.codec == "bf16" ? device_bits() : 8; }

  // The key before the first token of everything in a namespace.
  kvstore::BlockKey Root(const std::string& cache_namespace) const;

  // Blocks for all of `tokens`, the longest cached prefix (at most all but the last token, whose
  // logits are still wanted) among them; with `use_cache` false all are fresh. Nothing when too few
  // blocks can be freed while `reserve` more stay free; no block is then held.
  absl::StatusOr<std::optional<AcquiredKv>> Acquire(const kvstore::BlockKey& root,
                                                    std::span<const common::TokenId> tokens,
                                                    bool use_cache, int64_t reserve);
  // One more block, evicting unreferenced ones if need be; nothing when there is none.
  std::optional<kvstore::BlockHandle> Allocate();
  // Blocks that could be allocated now.
  int64_t available_blocks() const;
  // Of `blocks`, those that would become available if the caller let go of them.
  int64_t FreedBy(std::span<const kvstore::BlockHandle> blocks) const;

  // Looks up what the tiers hold of `tokens` (all but the last) beyond `device_tokens` and loads it
  // into `blocks`, unless computing it at `prefill_tokens_per_second` (0: not known) is faster.
  // `done` is called exactly once, maybe before this returns. Only blocks from device_tokens /
  // block_tokens on are written.
  void Restore(const kvstore::BlockKey& root, std::vector<common::TokenId> tokens,
               int64_t device_tokens, std::vector<kvstore::BlockHandle> blocks,
               double prefill_tokens_per_second, kvstore::KvStore::RestoreDone done);

  // A returning turn took nothing from the tiers: all it could use was on the device, or it
  // computes.
  void CountUnrestored(bool all_on_device);

  // `blocks` hold the KV of `tokens`. Registers them on the device and, if `save`, saves them to
  // the tiers in the background; `saved` runs when that is over (and the blocks are let go).
  void Keep(const kvstore::BlockKey& root, std::vector<common::TokenId> tokens,
            std::vector<kvstore::BlockHandle> blocks, bool save,
            absl::AnyInvocable<void()> saved = nullptr);

  // Both leave the blocks of the first `keep` tokens, which somebody else needs, where they are.
  absl::Status Forget(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens,
                      size_t keep = 0);
  void Park(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens,
            size_t keep = 0);
  void Prefetch(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens);

 private:
  // What follows the full blocks of the first `skip` tokens, and the key of those.
  struct Rest {
    kvstore::BlockKey root;
    std::span<const common::TokenId> tokens;
  };
  Rest After(const kvstore::BlockKey& root, std::span<const common::TokenId> tokens,
             size_t skip) const;
  void MakeFree(int64_t wanted);
  void Publish();
  void CountLeft(kvstore::KvLeaveReason reason, int64_t blocks);

  const Options options_;
  const std::string layout_;
  kvstore::KvBlockPool& pool_;
  kvstore::KvStore* const store_;
  kvstore::KvMetrics& metrics_;
  DeviceCache device_;
  ScrapeLink scrape_link_;
};

}  // namespace loopserve::worker
