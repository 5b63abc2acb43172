#include "kvstore/eviction.h"

namespace loopserve::kvstore {

void EvictionOrder::Use(const PlaneKey& key) {
  Remove(key);
  // Planes of one block that are used in a row count as used at once.
  if (now_ == 0 || key.block != last_used_) ++now_;
  last_used_ = key.block;
  ranks_.emplace(key, now_);
  order_.insert({now_, key});
}

void EvictionOrder::Remove(const PlaneKey& key) {
  const auto it = ranks_.find(key);
  if (it == ranks_.end()) return;
  order_.erase({it->second, key});
  ranks_.erase(it);
}

std::optional<PlaneKey> EvictionOrder::Victim() const {
  if (order_.empty()) return std::nullopt;
  return order_.begin()->key;
}

}  // namespace loopserve::kvstore
