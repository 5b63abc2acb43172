#include "worker/session/device_cache.h"

#include <algorithm>

namespace loopserve::worker {

using common::TokenId;
using kvstore::BlockHandle;
using kvstore::BlockKey;
using kvstore::ChildKey;

namespace {

// A popular prefix has many continuations; the newest are the likely ones.
constexpr size_t kMaxSiblingsTried = 64;

size_t CommonPrefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const size_t length = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(length), b.begin()).first -
      a.begin());
}

}  // namespace

DeviceCache::DeviceCache(kvstore::KvBlockPool& pool)
    : pool_(pool), cached_(pool.num_blocks(), false) {}

DeviceCache::Entry* DeviceCache::Find(const BlockKey& key, const BlockKey& parent,
                                      std::span<const TokenId> tokens) {
  auto it = entries_.find(key);
  if (it == entries_.end()) return nullptr;
  Entry& entry = it->second;
  const bool same = entry.parent == parent && std::ranges::equal(entry.tokens, tokens);
  return same ? &entry : nullptr;
}

DeviceMatch DeviceCache::Match(const BlockKey& root, std::span<const TokenId> tokens) {
  const size_t block_tokens = static_cast<size_t>(pool_.shape().block_tokens);
  DeviceMatch match;
  BlockKey parent = root;
  std::vector<BlockKey> path;
  absl::MutexLock lock(&mutex_);
  for (; tokens.size() >= block_tokens; tokens = tokens.subspan(block_tokens)) {
    const auto block = tokens.first(block_tokens);
    const BlockKey key = ChildKey(parent, block);
    const Entry* entry = Find(key, parent, block);
    if (entry == nullptr) break;
    match.full.push_back(entry->block);
    path.push_back(key);
    parent = key;
  }
  TouchAll(path);
  MatchTail(parent, tokens, match);
  return match;
}

void DeviceCache::MatchTail(const BlockKey& parent, std::span<const TokenId> rest,
                            DeviceMatch& match) {
  auto siblings = children_.find(parent);
  if (siblings == children_.end()) return;
  const BlockKey* best = nullptr;
  size_t best_tokens = 0;
  size_t tried = 0;
  for (auto key = siblings->second.rbegin();
       key != siblings->second.rend() && tried < kMaxSiblingsTried; ++key, ++tried) {
    const size_t common = CommonPrefix(entries_.at(*key).tokens, rest);
    if (common <= best_tokens) continue;
    best = &*key;
    best_tokens = common;
  }
  if (best == nullptr) return;
  match.tail = entries_.at(*best).block;
  match.tail_tokens = static_cast<int64_t>(best_tokens);
  TouchAll({*best});
}

void DeviceCache::Insert(const BlockKey& root, std::span<const TokenId> tokens,
                         std::span<const BlockHandle> blocks) {
  const size_t block_tokens = static_cast<size_t>(pool_.shape().block_tokens);
  BlockKey parent = root;
  std::vector<BlockKey> path;
  absl::MutexLock lock(&mutex_);
  for (const BlockHandle& block : blocks) {
    if (tokens.empty()) break;
    const auto held = tokens.first(std::min(block_tokens, tokens.size()));
    tokens = tokens.subspan(held.size());
    const BlockKey key = ChildKey(parent, held);
    if (!pool_.intact(block.id())) break;
    if (!Covered(parent, held) && !entries_.contains(key)) {
      lru_.push_back(key);
      Entry entry{parent, {held.begin(), held.end()}, block, std::prev(lru_.end())};
      entries_.emplace(key, std::move(entry));
      children_[parent].push_back(key);
      cached_[block.id().value()] = true;
    }
    path.push_back(key);
    parent = key;
  }
  TouchAll(path);
}

bool DeviceCache::Covered(const BlockKey& parent, std::span<const TokenId> tokens) {
  auto siblings = children_.find(parent);
  if (siblings == children_.end()) return false;
  std::vector<BlockKey> shorter;
  for (const BlockKey& key : siblings->second) {
    const Entry& entry = entries_.at(key);
    const size_t common = CommonPrefix(entry.tokens, tokens);
    if (common == tokens.size()) return true;
    if (common == entry.tokens.size()) shorter.push_back(key);
  }
  for (const BlockKey& key : shorter) Erase(key);
  return false;
}

int64_t DeviceCache::Forget(const BlockKey& root, std::span<const TokenId> tokens) {
  const size_t block_tokens = static_cast<size_t>(pool_.shape().block_tokens);
  BlockKey parent = root;
  std::vector<BlockKey> doomed;
  absl::MutexLock lock(&mutex_);
  while (!tokens.empty()) {
    if (auto siblings = children_.find(parent); siblings != children_.end()) {
      for (const BlockKey& key : siblings->second) {
        const Entry& entry = entries_.at(key);
        if (CommonPrefix(entry.tokens, tokens) == entry.tokens.size()) doomed.push_back(key);
      }
    }
    if (tokens.size() < block_tokens) break;
    parent = ChildKey(parent, tokens.first(block_tokens));
    tokens = tokens.subspan(block_tokens);
  }
  for (const BlockKey& key : doomed) Erase(key);
  return static_cast<int64_t>(doomed.size());
}

int64_t DeviceCache::MakeFree(int64_t wanted) {
  int64_t dropped = 0;
  absl::MutexLock lock(&mutex_);
  for (auto it = lru_.begin(); it != lru_.end() && pool_.free_blocks() < wanted;) {
    const BlockKey key = *it++;
    if (pool_.use_count(entries_.at(key).block.id()) > 1) continue;
    Erase(key);
    ++dropped;
  }
  return dropped;
}

int64_t DeviceCache::unreferenced() const {
  absl::MutexLock lock(&mutex_);
  return std::ranges::count_if(
      entries_, [&](const auto& item) { return pool_.use_count(item.second.block.id()) == 1; });
}

int64_t DeviceCache::FreedBy(std::span<const BlockHandle> blocks) const {
  absl::MutexLock lock(&mutex_);
  const auto freed = [&](const BlockHandle& block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const uint32_t others = pool_.use_count(block.id()) - 1;
    return others == (cached_[block.id().value()] ? 1u : 0u);
  };
  int64_t count = 0;
  for (const BlockHandle& block : blocks) count += freed(block) ? 1 : 0;
  return count;
}

int64_t DeviceCache::size() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(entries_.size());
}

void DeviceCache::Clear() {
  absl::MutexLock lock(&mutex_);
  entries_.clear();
  children_.clear();
  lru_.clear();
  cached_.assign(cached_.size(), false);
}

void DeviceCache::TouchAll(const std::vector<BlockKey>& keys) {
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    auto it = entries_.find(*key);
    if (it != entries_.end()) lru_.splice(lru_.end(), lru_, it->second.lru);
  }
}

void DeviceCache::Erase(const BlockKey& key) {
  auto it = entries_.find(key);
  if (it == entries_.end()) return;
  auto siblings = children_.find(it->second.parent);
  std::erase(siblings->second, key);
  if (siblings->second.empty()) children_.erase(siblings);
  cached_[it->second.block.id().value()] = false;
  lru_.erase(it->second.lru);
  entries_.erase(it);
}

}  // namespace loopserve::worker
