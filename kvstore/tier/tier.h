// Tier: bytes by key in one place. It knows neither codecs, nor sessions, nor policies.
//
// The device tier is KvBlockPool; host, disk and remote are Tiers. A chain of tiers (chain.h) is a
// Tier again. Entries are planes of blocks: a tier may hold any prefix of a block's planes.
//
// Thread rule: all calls are safe from any thread and may block on I/O.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/block_key.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

// Where KV can lie. The order is that of speed; the names are those of metrics and of the API.
enum class Place : uint8_t { kDevice = 0, kHost = 1, kDisk = 2, kRemote = 3 };
absl::string_view NameOf(Place place);

struct PlaneKey {
  BlockKey block;
  uint8_t plane = 0;
  auto operator<=>(const PlaneKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const PlaneKey& key) {
    return H::combine(std::move(h), key.block, key.plane);
  }
};

struct Usage {
  uint64_t used_bytes = 0;
  uint64_t capacity_bytes = 0;
  uint64_t entries = 0;
};

struct Entry {
  std::vector<std::byte> bytes;
  Place place = Place::kHost;  // the tier that really held it
};

class Tier {
 public:
  virtual ~Tier() = default;
  virtual Place place() const = 0;
  // Replaces nothing: a key that is there already stays as it is (keys name content) and counts as
  // used. ResourceExhausted when the entry cannot fit, Unavailable when the place cannot be
  // reached.
  virtual absl::Status Put(const PlaneKey& key, ByteSpan bytes) = 0;
  // NotFound; DataLoss when what lies there is damaged (it is erased); Unavailable.
  virtual absl::StatusOr<Entry> Get(const PlaneKey& key) = 0;
  virtual bool Contains(const PlaneKey& key) = 0;
  // Ok when there was nothing.
  virtual absl::Status Erase(const PlaneKey& key) = 0;
  virtual Usage usage() const = 0;
};

}  // namespace loopserve::kvstore
