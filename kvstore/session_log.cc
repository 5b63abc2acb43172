#include "kvstore/session_log.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvstore/byte_io.h"
#include "kvstore/session_tombstones.h"

namespace loopserve::kvstore {
namespace {

constexpr uint32_t kMagic = 0x4e53534c;  // "LSSN"
constexpr uint16_t kVersion = 2;
constexpr uint16_t kVersionWithoutOwner = 1;

void PutTurn(const TurnRecord& turn, ByteWriter& out) {
  out.PutString(turn.turn_id);
  out.Put(turn.begin);
  out.Put(turn.answer_begin);
  out.Put(turn.end);
  out.PutString(turn.finish_reason);
  out.PutString(turn.answer);
  out.Put(turn.committed_unix_us);
  out.Put(turn.computed_tokens);
  for (const uint64_t tokens : turn.restored_tokens) out.Put(tokens);
}

TurnRecord GetTurn(ByteReader& in) {
  TurnRecord turn;
  turn.turn_id = in.GetString();
  turn.begin = in.Get<uint64_t>();
  turn.answer_begin = in.Get<uint64_t>();
  turn.end = in.Get<uint64_t>();
  turn.finish_reason = in.GetString();
  turn.answer = in.GetString();
  turn.committed_unix_us = in.Get<int64_t>();
  turn.computed_tokens = in.Get<uint64_t>();
  for (uint64_t& tokens : turn.restored_tokens) tokens = in.Get<uint64_t>();
  return turn;
}

// Turns cover the log in order, without gaps.
bool TurnsFit(const SessionRecord& record) {
  uint64_t next = 0;
  for (const TurnRecord& turn : record.turns) {
    if (turn.begin != next || turn.answer_begin < turn.begin || turn.end < turn.answer_begin) {
      return false;
    }
    next = turn.end;
  }
  return next == record.tokens.size();
}

}  // namespace

absl::StatusOr<std::vector<SessionLog::Summary>> SessionLog::Page(const common::SessionId& after,
                                                                  size_t limit) {
  ASSIGN_OR_RETURN(std::vector<Summary> all, List());
  std::erase_if(
      all, [&](const Summary& summary) { return !after.value().empty() && summary.id <= after; });
  std::ranges::sort(all, {}, &Summary::id);
  if (all.size() > limit) all.resize(limit);
  return all;
}

absl::StatusOr<size_t> SessionLog::Count() {
  ASSIGN_OR_RETURN(const std::vector<Summary> all, List());
  return all.size();
}

SessionLog::Summary SummaryOf(const SessionRecord& record) {
  return {.id = record.id,
          .epoch = record.epoch,
          .tokens = record.tokens.size(),
          .turns = record.turns.size(),
          .used_unix_us = record.used_unix_us,
          .ttl_seconds = record.ttl_seconds,
          .tenant = record.tenant,
          .owner = record.owner};
}

absl::Status Fence(const SessionLog::Summary& stored, const SessionLog::Summary& next) {
  const bool others = !stored.owner.empty() && stored.owner != next.owner;
  if (stored.epoch == next.epoch && others) return StaleEpoch(stored.epoch);
  return Fence(stored, common::SessionRef{next.id, next.epoch});
}

absl::Status Fence(const SessionLog::Summary& stored, const common::SessionRef& ref) {
  return stored.epoch > ref.epoch ? StaleEpoch(stored.epoch) : absl::OkStatus();
}

std::vector<std::byte> EncodeSessionRecord(const SessionRecord& record) {
  ByteWriter out;
  out.Reserve(256 + record.tokens.size() * sizeof(common::TokenId));
  out.Put(kMagic);
  const bool has_owner = !record.owner.empty();
  out.Put(has_owner ? kVersion : kVersionWithoutOwner);
  out.PutString(record.id.value());
  out.Put(record.epoch.value());
  if (has_owner) out.PutString(record.owner);
  out.PutString(record.tenant);
  out.PutString(record.model);
  out.PutString(record.cache_namespace);
  out.Put(record.created_unix_us);
  out.Put(record.used_unix_us);
  out.Put(record.ttl_seconds);
  out.Put(static_cast<uint64_t>(record.tokens.size()));
  out.PutBytes(std::as_bytes(std::span(record.tokens)));
  out.Put(static_cast<uint32_t>(record.turns.size()));
  for (const TurnRecord& turn : record.turns) PutTurn(turn, out);
  out.PutCrc();
  return std::move(out).Take();
}

absl::StatusOr<SessionRecord> DecodeSessionRecord(ByteSpan bytes) {
  if (bytes.size() < sizeof(uint32_t)) return absl::DataLossError("session record: too short");
  const ByteSpan body = bytes.first(bytes.size() - sizeof(uint32_t));
  if (ByteReader(bytes.last(sizeof(uint32_t))).Get<uint32_t>() != common::Crc32c(body)) {
    return absl::DataLossError("session record: the checksum differs");
  }
  ByteReader in(body);
  if (in.Get<uint32_t>() != kMagic) return absl::DataLossError("session record: no such format");
  const auto version = in.Get<uint16_t>();
  if (version < kVersionWithoutOwner || version > kVersion) {
    return absl::UnimplementedError(
        absl::StrCat("session record: version ", version, "; this build reads 1 to ", kVersion));
  }
  SessionRecord record;
  record.id = common::SessionId(in.GetString());
  record.epoch = common::Epoch(in.Get<uint64_t>());
  if (version != kVersionWithoutOwner) record.owner = in.GetString();
  record.tenant = in.GetString();
  record.model = in.GetString();
  record.cache_namespace = in.GetString();
  record.created_unix_us = in.Get<int64_t>();
  record.used_unix_us = in.Get<int64_t>();
  record.ttl_seconds = in.Get<int64_t>();
  record.tokens = in.GetArray<common::TokenId>(in.Get<uint64_t>());
  const auto turns = in.Get<uint32_t>();
  for (uint32_t i = 0; i < turns && in.ok(); ++i) record.turns.push_back(GetTurn(in));
  if (!in.ok() || in.remaining() != 0 || !TurnsFit(record)) {
    return absl::DataLossError("session record: the contents do not add up");
  }
  return record;
}

}  // namespace loopserve::kvstore
