#include "worker/session/session_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "kvstore/session_tombstones.h"

namespace loopserve::worker {

using common::MakeError;
using common::Reason;
using common::SessionRef;
using kvstore::SessionRecord;
using kvstore::TurnRecord;

namespace {

constexpr size_t kMaxParkedCounted = 1 << 20;
// Longer than turns take by default (--max-turn-time): after it, what another worker should have
// swept is swept here.
constexpr absl::Duration kOthersGrace = absl::Hours(1);

absl::Status NotFound() { return MakeError(Reason::kSessionNotFound, "there is no such session"); }

// What the log says with a reason is for the client; the rest is its storage, which the client
// cannot know.
absl::Status FromLog(const absl::Status& status) {
  if (status.ok() || common::InfoOf(status).reason != Reason::kNone) return status;
  if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) {
    common::ErrorInfo info;
    info.reason = Reason::kLoading;
    info.retry_after = absl::Seconds(1);
    return MakeError(std::move(info),
                     absl::StrCat("the session's record cannot be reached: ", status.message()));
  }
  if (absl::IsDataLoss(status)) {
    return MakeError(Reason::kKvCorrupt, "the session's record is damaged");
  }
  return MakeError(Reason::kInternal,
                   absl::StrCat("the session's record cannot be kept: ", status.message()));
}

absl::Status Exists() { return MakeError(Reason::kSessionExists, "the session exists already"); }

size_t TurnIndexOf(const SessionRecord& record, const std::string& turn_id) {
  if (turn_id.empty()) return SIZE_MAX;
  const auto found = std::ranges::find(record.turns, turn_id, &TurnRecord::turn_id);
  return found == record.turns.end() ? SIZE_MAX : static_cast<size_t>(found - record.turns.begin());
}

common::Gauge& SessionGauge(common::Metrics& metrics, const std::string& model, const char* state) {
  return metrics.gauge("loopserve_session_active",
                       "Sessions this worker owns: a turn runs, between turns, only in the store.",
                       {{"model", model}, {"state", state}});
}

void KeepTurns(SessionRecord& record, uint64_t turns) {
  if (turns >= record.turns.size()) return;
  record.tokens.resize(record.turns[turns].begin);
  record.turns.resize(turns);
}

}  // namespace

std::string CacheNamespaceOf(absl::string_view cache_namespace, absl::string_view tenant) {
  return cache_namespace.empty() ? absl::StrCat("tenant/", tenant)
                                 : absl::StrCat("namespace/", cache_namespace);
}

// Guarded by the cache's mutex, but for reads of `record` by the holder of the claim: nobody else
// writes it.
struct SessionCache::Entry {
  std::string id;
  common::Epoch epoch;
  SessionRecord record;
  bool loaded = false;
  bool claimed = true;
  bool committed_here = false;
  bool exists = false;  // in the log: a new session becomes real with its first commit
  std::list<std::string>::iterator lru;
};

// --- Claim

SessionCache::Claim::Claim(SessionCache* cache, std::shared_ptr<Entry> entry)
    : cache_(cache), entry_(std::move(entry)) {}

SessionCache::Claim::Claim(Claim&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)),
      entry_(std::move(other.entry_)),
      replay_turn_(other.replay_turn_) {}

SessionCache::Claim& SessionCache::Claim::operator=(Claim&& other) noexcept {
  if (this == &other) return *this;
  Release();
  cache_ = std::exchange(other.cache_, nullptr);
  entry_ = std::move(other.entry_);
  replay_turn_ = other.replay_turn_;
  return *this;
}

SessionCache::Claim::~Claim() { Release(); }

const SessionRecord& SessionCache::Claim::record() const { return entry_->record; }

const TurnRecord* SessionCache::Claim::replay() const {
  return replay_turn_ == SIZE_MAX ? nullptr : &entry_->record.turns[replay_turn_];
}

bool SessionCache::Claim::committed_here() const {
  return entry_ != nullptr && entry_->committed_here;
}

std::optional<absl::Duration> SessionCache::Claim::return_gap() const {
  if (entry_->record.turns.empty()) return std::nullopt;
  return absl::Microseconds(cache_->NowMicros() - entry_->record.turns.back().committed_unix_us);
}

void SessionCache::Claim::Release() {
  if (SessionCache* cache = std::exchange(cache_, nullptr)) cache->Unclaim(entry_);
}

absl::Status SessionCache::Claim::Replace(SessionRecord next) {
  if (absl::Status status = FromLog(cache_->log_.Put(next)); !status.ok()) {
    // Another worker owns it now, or it was deleted: what lies in memory is outdated.
    if (common::HasReason(status, Reason::kStaleEpoch)) cache_->Drop(entry_, false);
    Release();
    return status;
  }
  cache_->SetRecord(*entry_, std::move(next));
  Release();
  return absl::OkStatus();
}

absl::Status SessionCache::Claim::Commit(TurnCommit commit) {
  const int64_t now = cache_->NowMicros();
  SessionRecord next = entry_->record;
  TurnRecord turn{.turn_id = std::move(commit.turn_id),
                  .begin = next.tokens.size(),
                  .answer_begin = next.tokens.size() + commit.prompt.size(),
                  .end = next.tokens.size() + commit.prompt.size() + commit.answer.size(),
                  .finish_reason = std::move(commit.finish_reason),
                  .answer = std::move(commit.answer_text),
                  .committed_unix_us = now,
                  .computed_tokens = commit.accounting.computed};
  std::ranges::copy(commit.accounting.restored, turn.restored_tokens);
  next.tokens.insert(next.tokens.end(), commit.prompt.begin(), commit.prompt.end());
  next.tokens.insert(next.tokens.end(), commit.answer.begin(), commit.answer.end());
  next.turns.push_back(std::move(turn));
  next.used_unix_us = now;
  auto entry = entry_;
  SessionCache* cache = cache_;
  RETURN_IF_ERROR(Replace(std::move(next)));
  absl::MutexLock lock(&cache->mutex_);
  entry->committed_here = true;
  return absl::OkStatus();
}

// --- Claiming

SessionCache::SessionCache(Options options, kvstore::SessionLog& log, KvCache& kv,
                           const common::Clock& clock, common::Metrics& metrics,
                           common::Logger& logger)
    : options_(std::move(options)),
      log_(log),
      kv_(kv),
      clock_(clock),
      logger_(logger),
      active_(SessionGauge(metrics, options_.model_name, "active")),
      idle_(SessionGauge(metrics, options_.model_name, "idle")),
      parked_gauge_(SessionGauge(metrics, options_.model_name, "parked")),
      scrape_link_(metrics, [this] { Publish(); }) {
  log_.SetDropListener([this](const SessionRecord& record) { OnDropped(record); });
}

SessionCache::~SessionCache() { log_.SetDropListener(nullptr); }

absl::Status SessionCache::Busy() const {
  common::ErrorInfo info;
  info.reason = Reason::kSessionBusy;
  info.retry_after = options_.busy_retry_after;
  return MakeError(std::move(info), "another turn of this session is running");
}

absl::StatusOr<SessionCache::Claim> SessionCache::Reserve(const SessionRef& ref) {
  const std::string& id = ref.id.value();
  absl::MutexLock lock(&mutex_);
  if (auto it = entries_.find(id); it != entries_.end()) {
    Entry& entry = *it->second;
    if (ref.epoch < entry.epoch) return kvstore::StaleEpoch(entry.epoch);
    if (ref.epoch == entry.epoch) {
      if (entry.claimed) return Busy();
      entry.claimed = true;
      lru_.splice(lru_.begin(), lru_, entry.lru);
      return Claim(this, it->second);
    }
    // A newer owner: what is in memory may be outdated, and whoever still holds it cannot commit.
    DropLocked(entry, false);
  }
  auto entry = std::make_shared<Entry>();
  entry->id = id;
  entry->epoch = ref.epoch;
  lru_.push_front(id);
  entry->lru = lru_.begin();
  entries_[id] = entry;
  parked_.erase(id);
  TrimLocked();
  return Claim(this, std::move(entry));
}

absl::StatusOr<SessionRecord> SessionCache::Read(const SessionRef& ref, bool create) {
  absl::StatusOr<SessionRecord> found = log_.Get(ref.id);
  if (found.ok()) return found;
  if (!absl::IsNotFound(found.status())) return FromLog(found.status());
  // An id may be used again, under an epoch that is newer than the deletion's.
  const std::optional<uint64_t> erased = common::InfoOf(found.status()).current_epoch;
  if (create && erased && ref.epoch.value() <= *erased)
    return kvstore::StaleEpoch(common::Epoch(*erased));
  return NotFound();
}

absl::StatusOr<SessionRecord> SessionCache::ReadUsable(const SessionRef& ref, bool create) {
  ASSIGN_OR_RETURN(SessionRecord record, Read(ref, create));
  if (ref.epoch < record.epoch) return kvstore::StaleEpoch(record.epoch);
  if (record.model != options_.model) {
    return MakeError(Reason::kModelNotFound, "the session was made with another model");
  }
  if (Expired(record.used_unix_us, record.ttl_seconds)) return NotFound();
  return record;
}

absl::StatusOr<SessionRecord> SessionCache::Load(const SessionRef& ref, bool create) {
  ASSIGN_OR_RETURN(SessionRecord record, ReadUsable(ref, create));
  // Said here and not left to the log: the one that takes the claim may be this worker's own disk,
  // which does not know of the other's.
  const kvstore::SessionLog::Summary before = kvstore::SummaryOf(record);
  record.epoch = ref.epoch;
  record.owner = options_.owner;
  RETURN_IF_ERROR(kvstore::Fence(before, kvstore::SummaryOf(record)));
  if (before.epoch != record.epoch || before.owner != record.owner) {
    RETURN_IF_ERROR(FromLog(log_.Put(record)));
  }
  return record;
}

absl::StatusOr<SessionCache::Claim> SessionCache::ClaimExisting(const SessionRef& ref,
                                                                bool create) {
  ASSIGN_OR_RETURN(Claim claim, Reserve(ref));
  Entry& entry = *claim.entry_;
  if (entry.loaded && Expired(entry.record.used_unix_us, entry.record.ttl_seconds)) {
    return NotFound();
  }
  if (!entry.loaded) {
    ASSIGN_OR_RETURN(SessionRecord record, Load(ref, create));
    SetRecord(entry, std::move(record));
  }
  return claim;
}

absl::StatusOr<SessionCache::Claim> SessionCache::ClaimNew(SessionRecord record, bool look) {
  ASSIGN_OR_RETURN(Claim claim, Reserve({record.id, record.epoch}));
  if (claim.entry_->loaded) return Exists();
  if (look) {
    const absl::StatusOr<SessionRecord> existing = Read({record.id, record.epoch}, true);
    if (existing.ok() && !Expired(existing->used_unix_us, existing->ttl_seconds)) return Exists();
    if (!existing.ok() && !absl::IsNotFound(existing.status())) return existing.status();
  }
  record.created_unix_us = record.used_unix_us = NowMicros();
  record.model = options_.model;
  record.owner = options_.owner;
  absl::MutexLock lock(&mutex_);
  claim.entry_->record = std::move(record);
  claim.entry_->loaded = true;
  return claim;
}

absl::StatusOr<SessionCache::Claim> SessionCache::OpenNew(const OpenRequest& request) {
  absl::StatusOr<Claim> existing = ClaimExisting(request.ref, true);
  if (existing.ok()) {
    // A retry of a first turn that was committed, though its answer got lost on the way.
    if (TurnIndexOf(existing->record(), request.turn_id) != SIZE_MAX) return existing;
    return Exists();
  }
  // The id is a fresh one, so a log that cannot be asked right now has no record of it either.
  if (!common::HasReason(existing.status(), Reason::kSessionNotFound) &&
      !absl::IsUnavailable(existing.status())) {
    return existing;
  }
  SessionRecord record;
  record.id = request.ref.id;
  record.epoch = request.ref.epoch;
  record.tenant = request.tenant;
  record.cache_namespace = request.cache_namespace;
  record.ttl_seconds = request.ttl_seconds;
  return ClaimNew(std::move(record), false);
}

absl::StatusOr<SessionCache::Claim> SessionCache::Open(const OpenRequest& request) {
  ASSIGN_OR_RETURN(Claim claim, request.create ? OpenNew(request) : ClaimExisting(request.ref));
  const SessionRecord& record = claim.record();
  claim.replay_turn_ = TurnIndexOf(record, request.turn_id);
  if (claim.replay_turn_ == SIZE_MAX &&
      request.base_turn.value_or(record.turns.size()) != record.turns.size()) {
    return MakeError(Reason::kTurnMismatch,
                     absl::StrCat("base_turn is ", *request.base_turn, ", but the session has ",
                                  record.turns.size(), " turns"));
  }
  return claim;
}

void SessionCache::SetRecord(Entry& entry, SessionRecord record) {
  absl::MutexLock lock(&mutex_);
  entry.record = std::move(record);
  entry.loaded = true;
  entry.exists = true;
}

void SessionCache::Unclaim(const std::shared_ptr<Entry>& entry) {
  absl::MutexLock lock(&mutex_);
  entry->claimed = false;
  // Nothing that never reached the log, and nothing that could not be read, stays.
  if (!entry->exists) DropLocked(*entry, false);
  TrimLocked();
}

void SessionCache::Drop(const std::shared_ptr<Entry>& entry, bool parked) {
  absl::MutexLock lock(&mutex_);
  DropLocked(*entry, parked);
}

void SessionCache::DropLocked(Entry& entry, bool parked) {
  auto it = entries_.find(entry.id);
  if (it == entries_.end() || it->second.get() != &entry) return;
  if (parked && parked_.size() < kMaxParkedCounted) parked_.insert(entry.id);
  lru_.erase(entry.lru);
  entries_.erase(it);  // last: may end the entry's life
}

void SessionCache::TrimLocked() {
  for (auto it = lru_.end(); entries_.size() > options_.max_resident && it != lru_.begin();) {
    --it;
    Entry& entry = *entries_.at(*it);
    if (entry.claimed) continue;
    ++it;  // the next one stays valid when this one goes
    DropLocked(entry, true);
  }
}

kvstore::BlockKey SessionCache::RootOf(const SessionRecord& record) const {
  return kv_.Root(CacheNamespaceOf(record.cache_namespace, record.tenant));
}

size_t SessionCache::SharedTokens(const SessionRecord& record) const {
  const kvstore::BlockKey root = RootOf(record);
  const auto& tokens = record.tokens;
  size_t shared = 0;
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, other] : entries_) {
    if (id == record.id.value() || !other->exists || RootOf(other->record) != root) continue;
    const auto& others = other->record.tokens;
    const auto differs = std::ranges::mismatch(tokens, others).in1;
    shared = std::max(shared, static_cast<size_t>(differs - tokens.begin()));
  }
  return shared;
}

bool SessionCache::Expired(int64_t used_unix_us, int64_t ttl_seconds) const {
  return ttl_seconds > 0 && NowMicros() - used_unix_us >= ttl_seconds * 1'000'000;
}

// --- Operations

SessionInfo SessionCache::InfoOf(const SessionRecord& record, SessionState state,
                                 bool resident) const {
  if (Expired(record.used_unix_us, record.ttl_seconds)) state = SessionState::kExpired;
  return {.ref = {record.id, record.epoch},
          .state = state,
          .resident = resident,
          .owned = record.owner == options_.owner,
          .turns = record.turns.size(),
          .tokens = record.tokens.size(),
          .tenant = record.tenant,
          .created = absl::FromUnixMicros(record.created_unix_us),
          .used = absl::FromUnixMicros(record.used_unix_us),
          .ttl_seconds = record.ttl_seconds};
}

absl::StatusOr<SessionInfo> SessionCache::CreateRecord(SessionRecord record) {
  ASSIGN_OR_RETURN(Claim claim, ClaimNew(std::move(record), true));
  SessionRecord written = claim.record();
  RETURN_IF_ERROR(claim.Replace(written));
  return InfoOf(written, SessionState::kIdle, true);
}

absl::StatusOr<SessionInfo> SessionCache::Create(const CreateRequest& request) {
  SessionRecord record;
  record.id = request.ref.id;
  record.epoch = request.ref.epoch;
  record.tenant = request.tenant;
  record.cache_namespace = request.cache_namespace;
  record.ttl_seconds = request.ttl_seconds;
  return CreateRecord(std::move(record));
}

absl::StatusOr<SessionRecord> SessionCache::Snapshot(const SessionRef& ref) {
  {
    absl::MutexLock lock(&mutex_);
    auto it = entries_.find(ref.id.value());
    if (it != entries_.end() && ref.epoch == it->second->epoch) {
      if (!it->second->exists) return Busy();
      const SessionRecord& record = it->second->record;
      if (Expired(record.used_unix_us, record.ttl_seconds)) return NotFound();
      return record;
    }
  }
  return ReadUsable(ref, false);
}

absl::StatusOr<SessionInfo> SessionCache::Get(const SessionRef& ref) {
  {
    absl::MutexLock lock(&mutex_);
    auto it = entries_.find(ref.id.value());
    if (it != entries_.end() && it->second->exists) {
      const Entry& entry = *it->second;
      if (ref.epoch < entry.epoch) return kvstore::StaleEpoch(entry.epoch);
      // Under a newer epoch it was elsewhere meanwhile: only the log knows what happened there.
      if (ref.epoch == entry.epoch) {
        return InfoOf(entry.record, entry.claimed ? SessionState::kActive : SessionState::kIdle,
                      true);
      }
    }
  }
  ASSIGN_OR_RETURN(SessionRecord record, Read(ref, false));
  if (ref.epoch < record.epoch) return kvstore::StaleEpoch(record.epoch);
  return InfoOf(record, SessionState::kParked, false);
}

absl::StatusOr<SessionInfo> SessionCache::SetTtl(const SessionRef& ref, int64_t ttl_seconds) {
  if (ttl_seconds < 0) return common::InvalidField("ttl", "must not be negative");
  ASSIGN_OR_RETURN(Claim claim, ClaimExisting(ref));
  SessionRecord next = claim.record();
  next.ttl_seconds = ttl_seconds;
  RETURN_IF_ERROR(claim.Replace(next));
  return InfoOf(next, SessionState::kIdle, true);
}

absl::Status SessionCache::Delete(const SessionRef& ref) {
  ASSIGN_OR_RETURN(Claim claim, ClaimExisting(ref));
  const SessionRecord& record = claim.record();
  RETURN_IF_ERROR(FromLog(log_.Erase(ref)));
  const absl::Status forgotten = kv_.Forget(RootOf(record), record.tokens, SharedTokens(record));
  if (!forgotten.ok()) {
    logger_.Warning("deleted session left KV behind", {{"error", forgotten.ToString()}});
  }
  Drop(claim.entry_, false);
  return absl::OkStatus();
}

absl::StatusOr<SessionInfo> SessionCache::Fork(const SessionRef& ref, const SessionRef& new_ref,
                                               std::optional<uint64_t> at_turn) {
  ASSIGN_OR_RETURN(SessionRecord record, Snapshot(ref));
  if (at_turn.value_or(0) > record.turns.size()) {
    return common::InvalidField(
        "at_turn", absl::StrCat("the session has ", record.turns.size(), " turns, got ", *at_turn));
  }
  KeepTurns(record, at_turn.value_or(record.turns.size()));
  record.id = new_ref.id;
  record.epoch = new_ref.epoch;
  absl::StatusOr<SessionInfo> made = CreateRecord(record);
  if (!common::HasReason(made.status(), Reason::kStaleEpoch)) return made;
  // If the new id was deleted before, the caller would take the refusal for the parent's.
  const std::optional<uint64_t> erased =
      common::InfoOf(log_.Get(new_ref.id).status()).current_epoch;
  if (!erased) return made;
  record.epoch = common::Epoch(*erased + 1);
  return CreateRecord(std::move(record));
}

absl::StatusOr<SessionInfo> SessionCache::Rewind(const SessionRef& ref, uint64_t to_turn) {
  ASSIGN_OR_RETURN(Claim claim, ClaimExisting(ref));
  SessionRecord next = claim.record();
  if (to_turn > next.turns.size()) {
    return common::InvalidField(
        "to_turn", absl::StrCat("the session has ", next.turns.size(), " turns, got ", to_turn));
  }
  KeepTurns(next, to_turn);
  next.used_unix_us = NowMicros();
  RETURN_IF_ERROR(claim.Replace(next));
  return InfoOf(next, SessionState::kIdle, true);
}

absl::StatusOr<SessionInfo> SessionCache::Park(const SessionRef& ref) {
  ASSIGN_OR_RETURN(Claim claim, ClaimExisting(ref));
  const SessionRecord& record = claim.record();
  kv_.Park(RootOf(record), record.tokens, SharedTokens(record));
  const SessionInfo info = InfoOf(record, SessionState::kParked, false);
  Drop(claim.entry_, true);
  return info;
}

absl::Status SessionCache::Resume(const SessionRef& ref) {
  absl::StatusOr<Claim> claim = ClaimExisting(ref);
  if (common::HasReason(claim.status(), Reason::kSessionBusy)) return absl::OkStatus();
  RETURN_IF_ERROR(claim.status());
  const SessionRecord& record = claim->record();
  kv_.Prefetch(RootOf(record), record.tokens);
  return absl::OkStatus();
}

size_t SessionCache::ParkAll() {
  std::vector<SessionRef> idle;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, entry] : entries_) {
      if (!entry->claimed) idle.push_back({common::SessionId(id), entry->epoch});
    }
  }
  return static_cast<size_t>(
      std::ranges::count_if(idle, [&](const SessionRef& ref) { return Park(ref).ok(); }));
}

absl::StatusOr<std::vector<SessionInfo>> SessionCache::List() {
  absl::StatusOr<std::vector<kvstore::SessionLog::Summary>> listed = log_.List();
  if (!listed.ok()) return FromLog(listed.status());
  const std::vector<kvstore::SessionLog::Summary> logged = *std::move(listed);
  std::vector<SessionInfo> infos;
  absl::MutexLock lock(&mutex_);
  for (const auto& summary : logged) {
    auto it = entries_.find(summary.id.value());
    if (it != entries_.end() && it->second->exists && it->second->epoch >= summary.epoch) {
      const Entry& entry = *it->second;
      infos.push_back(
          InfoOf(entry.record, entry.claimed ? SessionState::kActive : SessionState::kIdle, true));
      continue;
    }
    const bool expired = Expired(summary.used_unix_us, summary.ttl_seconds);
    infos.push_back({.ref = {summary.id, summary.epoch},
                     .state = expired ? SessionState::kExpired : SessionState::kParked,
                     .resident = false,
                     .owned = summary.owner == options_.owner,
                     .turns = summary.turns,
                     .tokens = summary.tokens,
                     .tenant = summary.tenant,
                     .created = absl::InfinitePast(),
                     .used = absl::FromUnixMicros(summary.used_unix_us),
                     .ttl_seconds = summary.ttl_seconds});
  }
  return infos;
}

size_t SessionCache::SweepExpired() {
  const absl::StatusOr<std::vector<SessionInfo>> all = List();
  if (!all.ok()) {
    logger_.Warning("cannot list sessions", {{"error", all.status().ToString()}});
    return 0;
  }
  size_t swept = 0;
  for (const SessionInfo& info : *all) {
    if (info.state != SessionState::kExpired) continue;
    // Its owner may be in the middle of a turn that began in time.
    const int64_t others_ttl = info.ttl_seconds + absl::ToInt64Seconds(kOthersGrace);
    if (!info.owned && !Expired(absl::ToUnixMicros(info.used), others_ttl)) continue;
    absl::StatusOr<Claim> claim = Reserve(info.ref);
    if (!claim.ok()) continue;  // a turn still runs, or another worker took it over
    const absl::StatusOr<SessionRecord> record = log_.Get(info.ref.id);
    if (!record.ok() || !Expired(record->used_unix_us, record->ttl_seconds)) continue;
    if (!log_.Erase(info.ref).ok()) continue;
    kv_.Forget(RootOf(*record), record->tokens, SharedTokens(*record)).IgnoreError();
    Drop(claim->entry_, false);
    ++swept;
  }
  return swept;
}

void SessionCache::OnDropped(const SessionRecord& record) {
  {
    absl::MutexLock lock(&mutex_);
    parked_.erase(record.id.value());
    const auto it = entries_.find(record.id.value());
    // A turn that still runs cannot commit.
    const bool idle = it != entries_.end() && !it->second->claimed;
    if (idle && it->second->epoch <= record.epoch) DropLocked(*it->second, false);
  }
  const absl::Status forgotten = kv_.Forget(RootOf(record), record.tokens, SharedTokens(record));
  if (!forgotten.ok()) {
    logger_.Warning("deleted session left KV behind", {{"error", forgotten.ToString()}});
  }
}

void SessionCache::Publish() {
  const Counts now = counts();
  active_.Set(static_cast<double>(now.active));
  idle_.Set(static_cast<double>(now.idle));
  parked_gauge_.Set(static_cast<double>(now.parked));
}

SessionCache::Counts SessionCache::counts() const {
  Counts counts;
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, entry] : entries_) ++(entry->claimed ? counts.active : counts.idle);
  counts.parked = parked_.size();
  return counts;
}

}  // namespace loopserve::worker
