#include "worker/session/kv_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {

using common::TokenId;
using kvstore::BlockHandle;
using kvstore::BlockKey;
using kvstore::KvShape;
using kvstore::RestoreResult;

namespace {

std::string LayoutOf(const KvShape& shape) {
  return absl::StrCat(kvstore::DtypeName(shape.dtype), "/t", shape.block_tokens, "/l", shape.layers,
                      "/h", shape.kv_heads, "/d", shape.head_dim);
}

// The last token's logits are still wanted, so its KV is always computed.
std::span<const TokenId> Restorable(std::span<const TokenId> tokens) {
  return tokens.empty() ? tokens : tokens.first(tokens.size() - 1);
}

}  // namespace

KvCache::KvCache(Options options, kvstore::KvBlockPool& pool, kvstore::KvStore* store,
                 kvstore::KvMetrics& metrics)
    : options_(std::move(options)),
      layout_(LayoutOf(pool.shape())),
      pool_(pool),
      store_(store),
      metrics_(metrics),
      device_(pool),
      scrape_link_(metrics.metrics, [this] { Publish(); }) {}

void KvCache::Publish() {
  const uint64_t all = pool_.num_blocks();
  const uint64_t free = pool_.free_blocks();
  const uint64_t cached = std::min<uint64_t>(device_.unreferenced(), all - free);
  metrics_.SetDeviceBlocks(free, all - free - cached, cached, pool_.resident_block_bytes());
}

BlockKey KvCache::Root(const std::string& cache_namespace) const {
  return kvstore::RootKey({.model = options_.model_fingerprint,
                           .layout = layout_,
                           .policy = options_.policy_tag,
                           .cache_namespace = cache_namespace});
}

void KvCache::MakeFree(int64_t wanted) {
  CountLeft(kvstore::KvLeaveReason::kCapacity, device_.MakeFree(wanted));
}

void KvCache::CountLeft(kvstore::KvLeaveReason reason, int64_t blocks) {
  const uint64_t count = static_cast<uint64_t>(blocks);
  metrics_.CountLeft(kvstore::Place::kDevice, reason, count, count * pool_.resident_block_bytes());
}

absl::StatusOr<std::optional<AcquiredKv>> KvCache::Acquire(const BlockKey& root,
                                                           std::span<const TokenId> tokens,
                                                           bool use_cache, int64_t reserve) {
  DeviceMatch match;
  if (use_cache) match = device_.Match(root, Restorable(tokens));
  const int64_t shared = static_cast<int64_t>(match.full.size());
  const int64_t fresh = pool_.shape().blocks_for(static_cast<int64_t>(tokens.size())) - shared;
  if (available_blocks() < fresh + reserve) {
    // The tail's own block may be the one that is missing.
    match.tail = BlockHandle();
    match.tail_tokens = 0;
    if (available_blocks() < fresh + reserve) return std::nullopt;
  }
  MakeFree(fresh);
  AcquiredKv acquired{.blocks = std::move(match.full),
                      .device_tokens = shared * pool_.shape().block_tokens};
  for (int64_t i = 0; i < fresh; ++i) {
    std::optional<BlockHandle> block = pool_.Allocate();
    if (!block) return std::nullopt;
    acquired.blocks.push_back(*std::move(block));
  }
  if (match.tail) {
    RETURN_IF_ERROR(
        pool_.CopyBlock(match.tail.id(), acquired.blocks[static_cast<size_t>(shared)].id()));
    acquired.device_tokens += match.tail_tokens;
  }
  return acquired;
}

std::optional<BlockHandle> KvCache::Allocate() {
  MakeFree(1);
  return pool_.Allocate();
}

int64_t KvCache::available_blocks() const { return pool_.free_blocks() + device_.unreferenced(); }

int64_t KvCache::FreedBy(std::span<const BlockHandle> blocks) const {
  return device_.FreedBy(blocks);
}

void KvCache::Restore(const BlockKey& root, std::vector<TokenId> tokens, int64_t device_tokens,
                      std::vector<BlockHandle> blocks, double prefill_tokens_per_second,
                      kvstore::KvStore::RestoreDone done) {
  tokens.resize(Restorable(tokens).size());
  const int64_t block_tokens = pool_.shape().block_tokens;
  const int64_t from = device_tokens / block_tokens * block_tokens;
  if (store_ == nullptr || device_tokens >= static_cast<int64_t>(tokens.size())) return done({});
  const int64_t found = store_->Lookup(root, tokens, from);
  if (found <= device_tokens) {
    RestoreResult nothing;
    nothing.short_reason = "miss";
    return done(std::move(nothing));
  }
  kvstore::KvStore::RestoreRequest request{.root = root,
                                           .tokens = std::move(tokens),
                                           .from_token = from,
                                           .to_token = found,
                                           .blocks = {},
                                           .prefill_tokens_per_second = prefill_tokens_per_second};
  const auto end = pool_.shape().blocks_for(found);
  for (int64_t i = from / block_tokens; i < end; ++i) {
    request.blocks.push_back(std::move(blocks[static_cast<size_t>(i)]));
  }
  store_->Restore(std::move(request), std::move(done));
}

void KvCache::CountUnrestored(bool all_on_device) {
  metrics_.CountPlan(all_on_device ? kvstore::RestoreDecision::kReuse
                                   : kvstore::RestoreDecision::kRecompute);
}

void KvCache::Keep(const BlockKey& root, std::vector<TokenId> tokens,
                   std::vector<BlockHandle> blocks, bool save, absl::AnyInvocable<void()> saved) {
  blocks.resize(static_cast<size_t>(pool_.shape().blocks_for(static_cast<int64_t>(tokens.size()))));
  device_.Insert(root, tokens, blocks);
  if (!save || store_ == nullptr || tokens.empty()) {
    blocks.clear();
    if (saved) saved();
    return;
  }
  store_->Save({.root = root, .tokens = std::move(tokens), .blocks = std::move(blocks)},
               [saved = std::move(saved)](const absl::Status&) mutable {
                 if (saved) saved();
               });
}

// Keys are chained, so the rest of a sequence is a sequence of its own under its prefix's key.
KvCache::Rest KvCache::After(const BlockKey& root, std::span<const TokenId> tokens,
                             size_t skip) const {
  const auto prefix = tokens.first(std::min(skip, tokens.size()));
  const auto keys = kvstore::ChainKeys(root, prefix, pool_.shape().block_tokens);
  const size_t skipped = keys.size() * static_cast<size_t>(pool_.shape().block_tokens);
  return {keys.empty() ? root : keys.back(), tokens.subspan(skipped)};
}

absl::Status KvCache::Forget(const BlockKey& root, std::span<const TokenId> tokens, size_t keep) {
  const Rest rest = After(root, tokens, keep);
  CountLeft(kvstore::KvLeaveReason::kDelete, device_.Forget(rest.root, rest.tokens));
  return store_ == nullptr ? absl::OkStatus() : store_->Forget(rest.root, Restorable(rest.tokens));
}

void KvCache::Park(const BlockKey& root, std::span<const TokenId> tokens, size_t keep) {
  const Rest rest = After(root, tokens, keep);
  device_.Forget(rest.root, rest.tokens);
  const auto kept = Restorable(rest.tokens);
  if (store_ != nullptr) store_->Park(rest.root, {kept.begin(), kept.end()});
}

void KvCache::Prefetch(const BlockKey& root, std::span<const TokenId> tokens) {
  const auto kept = Restorable(tokens);
  if (store_ != nullptr) store_->Prefetch(root, {kept.begin(), kept.end()});
}

}  // namespace loopserve::worker
