#include "kvstore/session_tombstones.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "kvstore/byte_io.h"

namespace loopserve::kvstore {

using common::MakeError;
using common::Reason;

std::optional<common::Epoch> Tombstones::Find(const common::SessionId& id) const {
  const auto it = stones_.find(id.value());
  if (it == stones_.end()) return std::nullopt;
  return it->second.epoch;
}

absl::Status Tombstones::Fence(const common::SessionRef& ref) const {
  const std::optional<common::Epoch> erased = Find(ref.id);
  return erased && ref.epoch <= *erased ? StaleEpoch(*erased) : absl::OkStatus();
}

bool Tombstones::Counts(const Tombstone& arrival) const {
  const auto it = stones_.find(arrival.id.value());
  return it != stones_.end() && it->second.erased == arrival.erased &&
         it->second.epoch == arrival.epoch;
}

void Tombstones::Add(Tombstone stone, absl::Time now) {
  Tombstone& slot = stones_.try_emplace(stone.id.value(), stone).first->second;
  if (slot.epoch > stone.epoch) return;
  slot = stone;
  order_.push_back(std::move(stone));
  while (order_.size() > most_ || (!order_.empty() && order_.front().erased + kKept < now)) {
    if (Counts(order_.front())) Remove(order_.front().id);
    order_.pop_front();
  }
}

std::vector<Tombstone> Tombstones::All() const {
  std::vector<Tombstone> all;
  std::ranges::copy_if(order_, std::back_inserter(all),
                       [this](const Tombstone& stone) { return Counts(stone); });
  return all;
}

std::vector<std::byte> EncodeTombstone(const Tombstone& stone) {
  ByteWriter out;
  out.PutString(stone.id.value());
  out.Put(stone.epoch.value());
  out.Put(absl::ToUnixMicros(stone.erased));
  out.PutCrc();
  return std::move(out).Take();
}

std::vector<Tombstone> DecodeTombstones(ByteSpan bytes, uint64_t& sound_bytes) {
  std::vector<Tombstone> stones;
  sound_bytes = 0;
  ByteReader in(bytes);
  while (in.remaining() > 0) {
    Tombstone stone;
    stone.id = common::SessionId(in.GetString());
    stone.epoch = common::Epoch(in.Get<uint64_t>());
    stone.erased = absl::FromUnixMicros(in.Get<int64_t>());
    const uint64_t end = bytes.size() - in.remaining();
    const auto crc = in.Get<uint32_t>();
    if (!in.ok()) break;
    if (crc != common::Crc32c(bytes.subspan(sound_bytes, end - sound_bytes))) break;
    sound_bytes = end + sizeof crc;
    stones.push_back(std::move(stone));
  }
  return stones;
}

absl::Status StaleEpoch(const common::Epoch& current) {
  return MakeError({.reason = Reason::kStaleEpoch, .current_epoch = current.value()},
                   absl::StrCat("the session is owned under epoch ", current.value()));
}

absl::Status NoSuchSession(std::optional<common::Epoch> erased_under) {
  common::ErrorInfo info{.reason = Reason::kSessionNotFound};
  if (erased_under) info.current_epoch = erased_under->value();
  return MakeError(std::move(info), "there is no session of this id");
}

}  // namespace loopserve::kvstore
