// The durable record of a session: an append-only log of token ids with turn boundaries. KV is only
// a cache of it; losing KV costs time, losing the log would lose the conversation.
//
// A record is replaced as a whole when a turn commits. Replacing is fenced: a store refuses a
// record whose epoch is older than the stored one's, or the same and another worker's (STALE_EPOCH,
// carrying the current epoch), so a worker that lost a session to another can never overwrite it,
// and two that were given one epoch cannot both own it. Deleting leaves a tombstone behind
// (session_tombstones.h), which fences in the same way: what comes late brings nothing back.
//
// Thread rule of SessionLog: all calls are safe from any thread and may block on I/O.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

// One committed turn. Token ranges index SessionRecord::tokens.
struct TurnRecord {
  std::string turn_id;        // the client's idempotency key; empty if it gave none
  uint64_t begin = 0;         // first token of the turn's prompt
  uint64_t answer_begin = 0;  // first generated token
  uint64_t end = 0;           // one past the last generated token
  std::string finish_reason;  // "stop", "length", ...
  std::string answer;         // the text the client got: what a replay returns
  int64_t committed_unix_us = 0;
  // Accounting of the turn: prompt tokens by source.
  uint64_t computed_tokens = 0;
  uint64_t restored_tokens[4] = {0, 0, 0, 0};  // by Place
};

struct SessionRecord {
  common::SessionId id;
  common::Epoch epoch;
  std::string owner;  // the worker that claimed it under `epoch`; empty in records of version 1
  std::string tenant;
  std::string model;  // ModelConfig::fingerprint
  std::string cache_namespace;
  int64_t created_unix_us = 0;
  int64_t used_unix_us = 0;
  int64_t ttl_seconds = 0;  // 0: until deleted
  std::vector<common::TokenId> tokens;
  std::vector<TurnRecord> turns;
};

class SessionLog {
 public:
  virtual ~SessionLog() = default;
  // Writes durably before it returns. FailedPrecondition/STALE_EPOCH when a newer epoch or another
  // worker owns it, or it was deleted under this epoch or a newer one.
  virtual absl::Status Put(const SessionRecord& record) = 0;
  // NotFound/SESSION_NOT_FOUND, with the epoch that it was deleted under if that is known; DataLoss
  // when the record is damaged.
  virtual absl::StatusOr<SessionRecord> Get(const common::SessionId& id) = 0;
  // STALE_EPOCH when a newer epoch owns it; ok when there is none.
  virtual absl::Status Erase(const common::SessionRef& ref) = 0;
  struct Summary {
    common::SessionId id;
    common::Epoch epoch;
    uint64_t tokens = 0;
    uint64_t turns = 0;
    int64_t used_unix_us = 0;
    int64_t ttl_seconds = 0;
    std::string tenant;
    std::string owner;  // empty: not known
  };
  virtual absl::StatusOr<std::vector<Summary>> List() = 0;
  // At most `limit` sessions whose ids come after `after` ("": from the first), in their order.
  virtual absl::StatusOr<std::vector<Summary>> Page(const common::SessionId& after, size_t limit);
  virtual absl::StatusOr<size_t> Count();
  // Hears of every record that is about to go from here because its session was deleted elsewhere:
  // its KV may go, too. Called from a thread of the log's. Null ends it: none runs after that.
  using DropListener = std::function<void(const SessionRecord&)>;
  virtual void SetDropListener(DropListener) {}
};

SessionLog::Summary SummaryOf(const SessionRecord& record);
// STALE_EPOCH unless `stored` may be replaced by what `next` sums up, or be erased under `ref`.
absl::Status Fence(const SessionLog::Summary& stored, const SessionLog::Summary& next);
absl::Status Fence(const SessionLog::Summary& stored, const common::SessionRef& ref);

// docs/formats/session_record.md. Decode: DataLoss for damaged bytes, never a crash.
std::vector<std::byte> EncodeSessionRecord(const SessionRecord& record);
absl::StatusOr<SessionRecord> DecodeSessionRecord(ByteSpan bytes);

// One file per session under `directory`, replaced atomically (write, fsync, rename).
// FailedPrecondition with the way out when the directory cannot be written.
absl::StatusOr<std::unique_ptr<SessionLog>> OpenDiskSessionLog(const std::string& directory);

// In memory only: ends with the process.
std::unique_ptr<SessionLog> CreateMemorySessionLog();

}  // namespace loopserve::kvstore
