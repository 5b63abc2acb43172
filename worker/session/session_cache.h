// SessionCache: the sessions this worker owns, and the rules of owning one.
//
// A session is an append-only log of token ids with turn boundaries (kvstore::SessionRecord). The
// durable copy lies in the SessionLog; the cache keeps the most recently used ones in memory. The
// epoch of a SessionRef is the fencing token: an older one than the record's is refused with
// STALE_EPOCH, and so is the same one when another worker claimed it, but for reading. A newer one
// than memory's makes the cache read the record again and claim it by writing it back with its own
// name, so that the former owner can no longer commit.
//
// One claim at a time: a turn or an operation that changes the session holds it; another one
// meanwhile gets SESSION_BUSY with RetryInfo. A claim under a newer epoch does not wait for an
// older one: that one's commit fails instead.
//
// Thread rule: all calls are safe from any thread. Every call may block on the log's I/O, so none
// belongs on a gRPC callback thread or on the step loop.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/metrics.h"
#include "kvstore/session_log.h"
#include "kvstore/store.h"
#include "worker/session/accounting.h"
#include "worker/session/kv_cache.h"
#include "worker/session/scrape_link.h"

namespace loopserve::worker {

using RenderTokens =
    absl::AnyInvocable<absl::StatusOr<std::vector<common::TokenId>>(const kvstore::SessionRecord&)>;

enum class SessionState { kActive, kIdle, kParked, kExpired };

struct SessionInfo {
  common::SessionRef ref;
  SessionState state = SessionState::kIdle;
  bool resident = false;  // in this worker's memory, not only known from the log
  bool owned = false;     // claimed by this worker under `ref.epoch`
  uint64_t turns = 0;
  uint64_t tokens = 0;
  std::string tenant;
  absl::Time created;  // InfinitePast where the log's listing does not tell
  absl::Time used;
  int64_t ttl_seconds = 0;
};

struct OpenRequest {
  common::SessionRef ref;
  bool create = false;  // make the session if there is none
  std::string tenant;
  std::string cache_namespace;
  int64_t ttl_seconds = 0;
  std::string turn_id;
  std::optional<uint64_t> base_turn;
};

// What a finished turn adds to the log.
struct TurnCommit {
  std::string turn_id;
  std::vector<common::TokenId> prompt;  // the new ones only
  std::vector<common::TokenId> answer;
  std::string finish_reason;
  std::string answer_text;
  PromptAccounting accounting;
};

class SessionCache final {
 private:
  struct Entry;

 public:
  struct Options {
    std::string owner;       // this worker's name in the records of its sessions
    std::string model;       // ModelConfig::fingerprint
    std::string model_name;  // label of the metrics
    size_t max_resident = 4096;
    absl::Duration busy_retry_after = absl::Milliseconds(200);
  };

  // `log`, `kv` and `clock` must outlive the cache.
  SessionCache(Options options, kvstore::SessionLog& log, KvCache& kv, const common::Clock& clock,
               common::Metrics& metrics, common::Logger& logger);
  ~SessionCache();

  // A claimed session. Destruction without Commit leaves the session as it was. A default one, and
  // one whose claim is over, must only be destroyed or assigned to.
  class Claim {
   public:
    Claim() = default;
    Claim(Claim&& other) noexcept;
    Claim& operator=(Claim&& other) noexcept;
    ~Claim();

    const kvstore::SessionRecord& record() const;
    // The turn that OpenRequest::turn_id names, when it was committed before.
    const kvstore::TurnRecord* replay() const;
    // Whether this worker committed the session's last turn (tells an evicted prefix from one that
    // was never here).
    bool committed_here() const;
    // Time since the end of the last turn; nothing for a first turn.
    std::optional<absl::Duration> return_gap() const;
    // Appends the turn and writes the record durably; then the claim is over. STALE_EPOCH when
    // somebody else owns the session by now: the log is unchanged.
    absl::Status Commit(TurnCommit commit);
    // Ends the claim without a change.
    void Release();

   private:
    friend class SessionCache;
    Claim(SessionCache* cache, std::shared_ptr<Entry> entry);
    // Writes `next` durably and makes it the session's record; ends the claim.
    absl::Status Replace(kvstore::SessionRecord next);
    SessionCache* cache_ = nullptr;
    std::shared_ptr<Entry> entry_;  // shared with the cache's table, which a newer epoch replaces
    size_t replay_turn_ = SIZE_MAX;
  };

  // For a turn. SESSION_NOT_FOUND, STALE_EPOCH, SESSION_BUSY, TURN_MISMATCH, MODEL_NOT_FOUND (the
  // record was made with another model), SESSION_EXISTS (create, but it is there already and does
  // not have this turn).
  absl::StatusOr<Claim> Open(const OpenRequest& request);

  struct CreateRequest {
    common::SessionRef ref;
    std::string tenant;
    std::string cache_namespace;
    int64_t ttl_seconds = 0;
  };
  // SESSION_EXISTS. Durable when it returns.
  absl::StatusOr<SessionInfo> Create(const CreateRequest& request);
  // Reads only: no claim, so a running turn does not disturb it. What lies in memory answers only
  // under its own epoch.
  absl::StatusOr<SessionInfo> Get(const common::SessionRef& ref);
  absl::StatusOr<SessionInfo> SetTtl(const common::SessionRef& ref, int64_t ttl_seconds);
  // Erases the record, and its KV from every tier, but for the prefix that another resident session
  // begins with (a fork, an equal system prompt).
  absl::Status Delete(const common::SessionRef& ref);
  // A new session with the first `at_turn` turns (default: all); shares all KV, copies none.
  absl::StatusOr<SessionInfo> Fork(const common::SessionRef& ref, const common::SessionRef& new_ref,
                                   std::optional<uint64_t> at_turn);
  // Keeps turns [0, to_turn).
  absl::StatusOr<SessionInfo> Rewind(const common::SessionRef& ref, uint64_t to_turn);
  // Moves the KV out of device and host memory and forgets the session here; the log keeps it.
  absl::StatusOr<SessionInfo> Park(const common::SessionRef& ref);
  // A turn is about to come: claims the record and prefetches its KV in the background.
  absl::Status Resume(const common::SessionRef& ref);
  // Parks every session that no turn holds; returns how many.
  size_t ParkAll();
  // Everything known here: resident sessions and the log's.
  absl::StatusOr<std::vector<SessionInfo>> List();
  // Deletes what has outlived its ttl; returns how many.
  size_t SweepExpired();

  struct Counts {
    size_t active = 0;  // claimed: a turn runs
    size_t idle = 0;    // resident, between turns
    size_t parked = 0;  // was here, now only in the log
  };
  Counts counts() const;

 private:
  friend class Claim;
  // Puts a claimed entry into the table, or claims the resident one. May still have to be loaded.
  absl::StatusOr<Claim> Reserve(const common::SessionRef& ref);
  // Claims a session that has to exist, reading its record if need be. With `create`, one that does
  // not exist may be made; STALE_EPOCH when one of this id was deleted under this epoch or a newer.
  absl::StatusOr<Claim> ClaimExisting(const common::SessionRef& ref, bool create = false);
  // Claims an id that must not exist yet. `look` in the log, too.
  absl::StatusOr<Claim> ClaimNew(kvstore::SessionRecord record, bool look);
  absl::StatusOr<Claim> OpenNew(const OpenRequest& request);
  // The record as the log has it, claimed under `ref.epoch` from now on.
  absl::StatusOr<kvstore::SessionRecord> Load(const common::SessionRef& ref, bool create);
  // The same without claiming it: for reading only.
  absl::StatusOr<kvstore::SessionRecord> ReadUsable(const common::SessionRef& ref, bool create);
  absl::StatusOr<kvstore::SessionRecord> Read(const common::SessionRef& ref, bool create);
  // A copy of the committed record, without claiming it.
  absl::StatusOr<kvstore::SessionRecord> Snapshot(const common::SessionRef& ref);
  absl::StatusOr<SessionInfo> CreateRecord(kvstore::SessionRecord record);
  absl::Status Busy() const;

  void SetRecord(Entry& entry, kvstore::SessionRecord record) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unclaim(const std::shared_ptr<Entry>& entry) ABSL_LOCKS_EXCLUDED(mutex_);
  // Forgets the entry unless another one has taken its place.
  void Drop(const std::shared_ptr<Entry>& entry, bool parked) ABSL_LOCKS_EXCLUDED(mutex_);
  void DropLocked(Entry& entry, bool parked) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TrimLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The log drops a record that lay here: the session was deleted on another worker.
  void OnDropped(const kvstore::SessionRecord& record);
  void Publish();
  kvstore::BlockKey RootOf(const kvstore::SessionRecord& record) const;
  // The longest prefix of the session that another resident one has, too.
  size_t SharedTokens(const kvstore::SessionRecord& record) const ABSL_LOCKS_EXCLUDED(mutex_);
  bool Expired(int64_t used_unix_us, int64_t ttl_seconds) const;
  SessionInfo InfoOf(const kvstore::SessionRecord& record, SessionState state, bool resident) const;
  int64_t NowMicros() const { return absl::ToUnixMicros(clock_.Now()); }

  const Options options_;
  kvstore::SessionLog& log_;
  KvCache& kv_;
  const common::Clock& clock_;
  common::Logger& logger_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, std::shared_ptr<Entry>> entries_ ABSL_GUARDED_BY(mutex_);
  std::list<std::string> lru_ ABSL_GUARDED_BY(mutex_);  // most recently used first
  // Ids that were resident once; bounded, for a gauge.
  absl::flat_hash_set<std::string> parked_ ABSL_GUARDED_BY(mutex_);
  common::Gauge& active_;
  common::Gauge& idle_;
  common::Gauge& parked_gauge_;
  ScrapeLink scrape_link_;
};

// What separates the cached prefixes of this session from those of others: its cache_namespace, or
// its tenant when it has none.
std::string CacheNamespaceOf(absl::string_view cache_namespace, absl::string_view tenant);

}  // namespace loopserve::worker
