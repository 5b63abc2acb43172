// Strong identifier types: a session id is never mistaken for a worker id, nor an epoch for a
// token count. Values are compared, hashed and printed like what they wrap.
#pragma once

#include <compare>
#include <cstdint>
#include <ostream>
#include <string>
#include <utility>

namespace loopserve::common {

template <typename Tag, typename Rep>
class StrongId {
 public:
  using rep = Rep;
  StrongId() = default;
  explicit StrongId(Rep value) : value_(std::move(value)) {}
  const Rep& value() const { return value_; }
  auto operator<=>(const StrongId&) const = default;
  bool operator==(const StrongId&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongId& id) {
    return H::combine(std::move(h), id.value_);
  }
  friend std::ostream& operator<<(std::ostream& os, const StrongId& id) { return os << id.value_; }

 private:
  Rep value_{};
};

using SessionId = StrongId<struct SessionIdTag, std::string>;
using WorkerId = StrongId<struct WorkerIdTag, std::string>;
using TurnId = StrongId<struct TurnIdTag, std::string>;
// Index of one paged KV block in a KvBlockPool; the same index on every tensor-parallel rank.
using BlockId = StrongId<struct BlockIdTag, uint32_t>;
// Fencing token of a session's ownership: the directory raises it at every re-pin, and worker and
// kvstore refuse an older one.
using Epoch = StrongId<struct EpochTag, uint64_t>;

// A vocabulary index. Negative values never leave the tokenizer.
using TokenId = int32_t;

// The session together with the fencing token that its owner must present.
struct SessionRef {
  SessionId id;
  Epoch epoch;
  bool operator==(const SessionRef&) const = default;
};

}  // namespace loopserve::common
