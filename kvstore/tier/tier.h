// Tier: bytes by key in one place. It knows neither codecs, nor sessions, nor policies.
//
// The device tier is KvBlockPool; host, disk and remote are Tiers. A chain of tiers (chain.h) is a
// Tier again. Entries are planes of blocks: a tier may hold any prefix of a block's planes.
//
// Thread rule: all calls are safe from any thread and may block on I/O.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/block_key.h"
#include "kvstore/host_arena.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

// Where KV can lie. The order is that of speed; the names are those of metrics and of the API.
enum class Place : uint8_t { kDevice = 0, kHost = 1, kDisk = 2, kRemote = 3 };
inline constexpr size_t kPlaces = 4;
constexpr absl::string_view NameOf(Place place) {
  constexpr absl::string_view kNames[kPlaces] = {"device", "host", "disk", "remote"};
  return kNames[static_cast<size_t>(place)];
}

struct PlaneKey {
  BlockKey block;
  uint8_t plane = 0;
  auto operator<=>(const PlaneKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const PlaneKey& key) {
    return H::combine(std::move(h), key.block, key.plane);
  }
};

// The bytes of an entry, in memory of their own: a vector's, or a part of a buffer.
class EntryBytes final {
 public:
  explicit EntryBytes(std::vector<std::byte> bytes) : plain_(std::move(bytes)), view_(plain_) {}
  // `part` lies in `buffer`.
  EntryBytes(HostBuffer buffer, ByteSpan part) : buffer_(std::move(buffer)), view_(part) {}
  EntryBytes(const EntryBytes&) = delete;
  EntryBytes& operator=(const EntryBytes&) = delete;

  const std::byte* data() const { return view_.data(); }
  size_t size() const { return view_.size(); }
  auto begin() const { return view_.begin(); }
  auto end() const { return view_.end(); }
  // Where a device copies it fastest.
  bool in_arena() const { return buffer_.in_arena(); }
  bool operator==(const EntryBytes& other) const { return *this == other.view_; }
  bool operator==(ByteSpan bytes) const { return std::ranges::equal(view_, bytes); }

 private:
  const std::vector<std::byte> plain_;
  const HostBuffer buffer_;
  const ByteSpan view_;
};

// Immutable bytes with shared ownership: one buffer lies in the host tier, waits in the queues of
// the tiers behind it and is read by a restore, all at once and without a copy.
using SharedBytes = std::shared_ptr<const EntryBytes>;
inline SharedBytes Share(std::vector<std::byte> bytes) {
  return std::make_shared<const EntryBytes>(std::move(bytes));
}

struct Usage {
  uint64_t used_bytes = 0;
  uint64_t capacity_bytes = 0;
  uint64_t entries = 0;
};

struct Entry {
  SharedBytes bytes;
  Place place = Place::kHost;  // the tier that really held it
};

// What an Erase found and removed; a tier that cannot tell reports zeros.
struct Erased {
  uint64_t entries = 0;
  uint64_t bytes = 0;
};

// An entry that left a tier to make room.
struct Eviction {
  PlaneKey key;
  uint64_t size = 0;
  SharedBytes bytes;  // null when the tier would have had to read them
};
using EvictionListener = std::function<void(const Eviction&)>;

class Tier {
 public:
  virtual ~Tier() = default;
  virtual Place place() const = 0;
  // Replaces nothing: a key that is there already stays as it is (keys name content) and counts as
  // used. ResourceExhausted when the entry cannot fit, Unavailable when the place cannot be
  // reached.
  virtual absl::Status Put(const PlaneKey& key, SharedBytes bytes) = 0;
  // NotFound; DataLoss when what lies there is damaged (it is erased); Unavailable.
  virtual absl::StatusOr<Entry> Get(const PlaneKey& key) = 0;
  // From memory, without I/O: a remote tier tells what it has learned, which may be out of date.
  virtual bool Contains(const PlaneKey& key) = 0;
  // Ok when there was nothing.
  virtual absl::StatusOr<Erased> Erase(std::span<const PlaneKey> keys) = 0;
  // Counts as used, the last of `keys` most recently.
  virtual void Touch(std::span<const PlaneKey> keys) = 0;
  // False while Put would fail at once: a disk in trouble, a remote that cannot be reached.
  virtual bool accepting() const { return true; }
  // How many of `tokens`, from the first on, can be read here as a chain of blocks after `root`.
  // Remote tiers ask; the others look.
  virtual absl::StatusOr<int64_t> Lookup(const BlockKey& root,
                                         std::span<const common::TokenId> tokens, int block_tokens);
  virtual Usage usage() const = 0;
  // Hears of every entry that leaves to make room; called with no lock held. Set once, before use.
  virtual void SetEvictionListener(EvictionListener listener) = 0;
};

}  // namespace loopserve::kvstore
