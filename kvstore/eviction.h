// Which entry leaves when room is needed.
//
// The victim is the entry with the least expected value, P(return soon) x milliseconds saved /
// bytes. With nothing better known than the time of last use, that orders entries by recency; of a
// block used at once, the refinement planes leave before the base, since a base without them is
// still a valid block. Callers mark the blocks of a sequence as used from the last to the first, so
// that a sequence shrinks from its end: a head without its tail is worth something, a tail without
// its head is not.
//
// Thread rule: one thread; it is a value and holds no resource.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

class EvictionOrder {
 public:
  // Adds an entry, or marks it as used now.
  void Use(const PlaneKey& key);
  void Remove(const PlaneKey& key);
  // The entry to lose next; nothing when there is none.
  std::optional<PlaneKey> Victim() const;
  size_t size() const { return ranks_.size(); }

 private:
  struct Rank {
    uint64_t used = 0;  // order of last use
    PlaneKey key;
    // Least valuable first.
    bool operator<(const Rank& other) const {
      return std::tuple(used, other.key.plane, key.block) <
             std::tuple(other.used, key.plane, other.key.block);
    }
  };
  std::set<Rank> order_;
  absl::flat_hash_map<PlaneKey, uint64_t> ranks_;
  uint64_t now_ = 0;
  BlockKey last_used_;
};

}  // namespace loopserve::kvstore
