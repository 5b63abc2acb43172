// Which sessions were deleted, and under which epoch: a copy of the record that lies elsewhere, or
// a commit that comes late, must not bring the conversation back.
//
// Bounded: the oldest are forgotten, by age and by number. A copy that comes back after that is a
// session again.
//
// Thread rule: the owner locks.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

struct Tombstone {
  common::SessionId id;
  common::Epoch epoch;
  absl::Time erased;
};

class Tombstones final {
 public:
  static constexpr size_t kMost = 100'000;
  static constexpr absl::Duration kKept = absl::Hours(24 * 30);

  explicit Tombstones(size_t most = kMost) : most_(most) {}

  // The epoch that the session was deleted under.
  std::optional<common::Epoch> Find(const common::SessionId& id) const;
  // STALE_EPOCH when the session was deleted under this epoch or a newer one.
  absl::Status Fence(const common::SessionRef& ref) const;
  // Of two of one session the higher epoch counts. Forgets what is too old at `now`.
  void Add(Tombstone stone, absl::Time now);
  void Remove(const common::SessionId& id) { stones_.erase(id.value()); }
  size_t size() const { return stones_.size(); }
  std::vector<Tombstone> All() const;  // oldest first

 private:
  // Whether an arrival is the one that counts for its session.
  bool Counts(const Tombstone& arrival) const;

  const size_t most_;
  absl::flat_hash_map<std::string, Tombstone> stones_;
  std::deque<Tombstone> order_;  // of arrival; some were removed or replaced since
};

// docs/formats/session_record.md. Decode: as many as are sound, up to the first that is not;
// `sound_bytes` is where it begins.
std::vector<std::byte> EncodeTombstone(const Tombstone& stone);
std::vector<Tombstone> DecodeTombstones(ByteSpan bytes, uint64_t& sound_bytes);

// The errors of a fenced log: STALE_EPOCH that names the current epoch; SESSION_NOT_FOUND, which
// names the epoch of the deletion if one is known.
absl::Status StaleEpoch(const common::Epoch& current);
absl::Status NoSuchSession(std::optional<common::Epoch> erased_under);

}  // namespace loopserve::kvstore
