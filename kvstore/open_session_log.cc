#include "kvstore/open_session_log.h"

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "kvstore/tier/remote.h"

namespace loopserve::kvstore {
namespace {

// The service has understood and says no, or none; anything else is trouble that passes.
bool IsVerdict(const absl::Status& status) {
  const common::Reason reason = common::InfoOf(status).reason;
  return reason == common::Reason::kStaleEpoch || reason == common::Reason::kSessionNotFound ||
         reason == common::Reason::kSessionExists || reason == common::Reason::kInvalidField;
}

bool LacksSession(const absl::Status& shared) {
  return common::HasReason(shared, common::Reason::kSessionNotFound);
}

// Whether `shared`, the service's answer to a Get, says that the record of `epoch` was deleted.
bool SaysDeleted(const absl::Status& shared, const common::Epoch& epoch) {
  const common::ErrorInfo info = common::InfoOf(shared);
  return LacksSession(shared) && info.current_epoch && epoch.value() <= *info.current_epoch;
}

// Of two copies written under one epoch by one owner, the later one counts, also when it has fewer
// turns: a rewind takes some away. Of two owners, who could only meet while the service was away,
// the one that it has taken counts.
bool LocalIsNewer(const SessionLog::Summary& local, const SessionLog::Summary& shared) {
  return Fence(shared, local).ok() && std::tie(local.epoch, local.used_unix_us, local.turns) >
                                          std::tie(shared.epoch, shared.used_unix_us, shared.turns);
}

// While the service takes nothing, pushing is tried again after twice the time, up to this.
constexpr absl::Duration kMostPause = absl::Seconds(5);

// Two duties in the background, on a thread of its own: what the service lacks is pushed, and what
// it knows as deleted is dropped. A pass over both lists finds it, at the start and whenever the
// service was away; what is met on the way adds to it.
class CombinedSessionLog final : public SessionLog {
 public:
  CombinedSessionLog(std::unique_ptr<SessionLog> shared, std::unique_ptr<SessionLog> local,
                     common::Logger& log, absl::Duration retry_every)
      : shared_(std::move(shared)),
        local_(std::move(local)),
        log_(log),
        retry_every_(retry_every),
        thread_(common::NamedThread("kv-sessions", [this](std::stop_token stop) { Run(stop); })) {}

  absl::Status Put(const SessionRecord& record) override {
    absl::MutexLock writer(&WriterOf(record.id));
    const absl::Status status = shared_->Put(record);
    if (status.ok()) {
      SetBehind(record.id, false);
      const absl::Status copied = local_->Put(record);
      // A newer epoch was written here while the service could not be reached.
      if (common::HasReason(copied, common::Reason::kStaleEpoch)) return copied;
      // Any other failure: an old copy on disk loses against the service when it is read.
      if (!copied.ok()) {
        log_.Warning("the local copy of a session record was not written",
                     {{"status", copied.ToString()}});
      }
      return absl::OkStatus();
    }
    if (IsVerdict(status)) {
      Suspect(record.id);  // the local copy may be of a session that was deleted
      return status;
    }
    TellOnce(status);
    RETURN_IF_ERROR(local_->Put(record));
    SetBehind(record.id, true);
    return absl::OkStatus();
  }

  absl::StatusOr<SessionRecord> Get(const common::SessionId& id) override {
    absl::StatusOr<SessionRecord> shared = shared_->Get(id);
    absl::StatusOr<SessionRecord> local = local_->Get(id);
    if (shared.ok() && local.ok()) {
      return LocalWins(SummaryOf(*local), SummaryOf(*shared)) ? local : shared;
    }
    if (shared.ok()) return shared;
    // Nobody knows whether the service, which cannot be asked, has what is not here. And what it
    // has and this build cannot read is newer than what is here.
    if (absl::IsNotFound(local.status()) || absl::IsUnimplemented(shared.status())) return shared;
    if (!local.ok()) return local;
    return WasDeleted(SummaryOf(*local), shared.status()) ? shared : local;
  }

  absl::Status Erase(const common::SessionRef& ref) override {
    absl::MutexLock writer(&WriterOf(ref.id));
    const absl::Status status = shared_->Erase(ref);
    if (!status.ok()) return status;  // an erased copy would come back from the service
    SetBehind(ref.id, false);
    return local_->Erase(ref);
  }

  absl::StatusOr<std::vector<Summary>> List() override {
    ASSIGN_OR_RETURN(std::vector<Summary> all, local_->List());
    absl::StatusOr<std::vector<Summary>> shared = shared_->List();
    if (!shared.ok()) {
      if (IsVerdict(shared.status())) return shared.status();
      // Only the service knows who owns them by now.
      for (Summary& summary : all) summary.owner.clear();
      return all;
    }
    absl::flat_hash_map<std::string, Summary> merged;
    for (Summary& summary : *shared) merged.emplace(summary.id.value(), std::move(summary));
    for (Summary& summary : all) {
      const auto it = merged.find(summary.id.value());
      if (it == merged.end()) {
        const bool deleted =
            !IsBehind(summary.id) && WasDeleted(summary, shared_->Get(summary.id).status());
        if (!deleted) merged.emplace(summary.id.value(), std::move(summary));
      } else if (LocalWins(summary, it->second)) {
        it->second = std::move(summary);
      }
    }
    all.clear();
    for (auto& [id, summary] : merged) all.push_back(std::move(summary));
    return all;
  }

  void SetDropListener(DropListener listener) override {
    const bool listens = listener != nullptr;
    {
      absl::MutexLock lock(&listener_mutex_);
      listener_ = std::move(listener);
    }
    if (listens) WantPass();
  }

 private:
  absl::Mutex& WriterOf(const common::SessionId& id) {
    return writers_[absl::Hash<std::string>()(id.value()) % writers_.size()];
  }

  // Whether the service lacks what lies here, as far as is known.
  bool IsBehind(const common::SessionId& id) const {
    absl::MutexLock lock(&mutex_);
    return behind_.contains(id.value());
  }
  void SetBehind(const common::SessionId& id, bool behind) {
    absl::MutexLock lock(&mutex_);
    if (behind) {
      behind_.insert(id.value());
      return;
    }
    behind_.erase(id.value());
    if (behind_.empty()) told_ = false;
  }
  void WantPass() {
    absl::MutexLock lock(&mutex_);
    want_pass_ = woken_ = true;
  }
  // The service is to be asked whether the session was deleted.
  void Suspect(const common::SessionId& id) {
    absl::MutexLock lock(&mutex_);
    suspects_.insert(id.value());
    woken_ = true;
  }
  void TellOnce(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      if (told_) return;
      told_ = true;
    }
    log_.Warning("the kvstore does not take session records; they are only on the local disk",
                 {{"status", status.ToString()}});
  }

  // Whether the copy here counts; then the service lacks it.
  bool LocalWins(const Summary& local, const Summary& shared) {
    if (!LocalIsNewer(local, shared)) return false;
    SetBehind(local.id, true);
    return true;
  }
  // Of a session that lies here, of which the service answers `missing`: deleted, or lost there?
  bool WasDeleted(const Summary& local, const absl::Status& missing) {
    const bool deleted = SaysDeleted(missing, local.epoch);
    if (deleted) {
      Suspect(local.id);
    } else if (LacksSession(missing)) {
      SetBehind(local.id, true);
    }
    return deleted;
  }

  void Run(const std::stop_token& stop);
  bool Wakes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || woken_; }
  bool Stopping() const {
    absl::MutexLock lock(&mutex_);
    return stopping_;
  }
  absl::Status Pass();
  void DropDeleted();
  void Drop(const common::SessionId& id, const common::Epoch& erased);
  bool Push();

  const std::unique_ptr<SessionLog> shared_;
  const std::unique_ptr<SessionLog> local_;
  common::Logger& log_;
  const absl::Duration retry_every_;
  // Held while a session is written to both, so that a push never undoes a later commit. Before the
  // others.
  std::array<absl::Mutex, 64> writers_;
  absl::Mutex listener_mutex_;  // held while the listener runs
  DropListener listener_ ABSL_GUARDED_BY(listener_mutex_);
  mutable absl::Mutex mutex_;
  std::set<std::string> behind_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::string> suspects_ ABSL_GUARDED_BY(mutex_);
  bool told_ ABSL_GUARDED_BY(mutex_) = false;
  bool want_pass_ ABSL_GUARDED_BY(mutex_) = true;
  bool woken_ ABSL_GUARDED_BY(mutex_) = true;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::string not_taken_;  // the thread's own: where the last push ended early
  std::jthread thread_;    // last: joined before what it uses goes
};

void CombinedSessionLog::Run(const std::stop_token& stop) {
  std::stop_callback wake(stop, [this] {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  });
  absl::Time next_push = absl::InfinitePast();
  absl::Duration pause = retry_every_;
  for (;;) {
    bool pass = false;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &CombinedSessionLog::Wakes), retry_every_);
      if (stopping_) return;
      woken_ = false;
    }
    const bool reachable = shared_->Count().ok();
    {
      absl::MutexLock lock(&mutex_);
      pass = std::exchange(want_pass_, !reachable);
    }
    if (!reachable) {
      next_push = absl::InfinitePast();  // as soon as it is back
      continue;
    }
    if (pass && !Pass().ok()) {
      absl::MutexLock lock(&mutex_);
      want_pass_ = true;  // in its turn: a service that cannot list would be asked without a pause
    }
    DropDeleted();
    if (absl::Now() < next_push) continue;
    if (Push()) {
      pause = retry_every_;
    } else {
      pause = std::min(2 * pause, std::max(kMostPause, retry_every_));
      next_push = absl::Now() + pause;
    }
  }
}

absl::Status CombinedSessionLog::Pass() {
  ASSIGN_OR_RETURN(const std::vector<Summary> local, local_->List());
  ASSIGN_OR_RETURN(const std::vector<Summary> shared, shared_->List());
  absl::flat_hash_map<std::string, const Summary*> known;
  for (const Summary& summary : shared) known.emplace(summary.id.value(), &summary);
  for (const Summary& summary : local) {
    if (Stopping()) break;
    const auto it = known.find(summary.id.value());
    if (it != known.end()) {
      LocalWins(summary, *it->second);
      continue;
    }
    const absl::Status missing = shared_->Get(summary.id).status();
    if (absl::IsUnavailable(missing)) return missing;
    WasDeleted(summary, missing);
  }
  return absl::OkStatus();
}

void CombinedSessionLog::DropDeleted() {
  absl::flat_hash_set<std::string> suspects;
  {
    absl::MutexLock lock(&mutex_);
    suspects.swap(suspects_);
  }
  for (const std::string& text : suspects) {
    if (Stopping()) return;
    const common::SessionId id(text);
    const absl::Status missing = shared_->Get(id).status();
    const common::ErrorInfo info = common::InfoOf(missing);
    if (LacksSession(missing) && info.current_epoch) Drop(id, common::Epoch(*info.current_epoch));
    if (!absl::IsUnavailable(missing)) continue;
    absl::MutexLock lock(&mutex_);
    suspects_.insert(text);
  }
}

// Its KV goes before the record does: who dies in between begins again.
void CombinedSessionLog::Drop(const common::SessionId& id, const common::Epoch& erased) {
  const absl::StatusOr<SessionRecord> record = local_->Get(id);
  if (!record.ok() || record->epoch > erased) return;
  {
    absl::MutexLock lock(&listener_mutex_);
    if (listener_ == nullptr) return;  // whoever sets one asks for another pass
    listener_(*record);
  }
  absl::MutexLock writer(&WriterOf(id));
  const absl::Status status = local_->Erase({id, erased});
  if (status.ok()) {
    SetBehind(id, false);
  } else if (!common::HasReason(status, common::Reason::kStaleEpoch)) {  // made anew meanwhile
    log_.Warning("the local copy of a deleted session was not erased",
                 {{"status", status.ToString()}});
  }
}

// Ends at the first record that is not taken, and returns false: the others would hardly be. The
// next push begins behind it, in case it is this record's fault.
bool CombinedSessionLog::Push() {
  std::vector<std::string> ids;
  {
    absl::MutexLock lock(&mutex_);
    ids.assign(behind_.begin(), behind_.end());
  }
  std::rotate(ids.begin(), std::upper_bound(ids.begin(), ids.end(), not_taken_), ids.end());
  size_t pushed = 0;
  bool taken = true;
  for (const std::string& text : ids) {
    if (Stopping()) break;
    const common::SessionId id(text);
    absl::MutexLock writer(&WriterOf(id));
    if (!IsBehind(id)) continue;
    const absl::StatusOr<SessionRecord> record = local_->Get(id);
    const absl::Status status = record.ok() ? shared_->Put(*record) : record.status();
    if (record.ok() && !status.ok() && !IsVerdict(status)) {
      TellOnce(status);
      not_taken_ = text;
      taken = false;
      break;
    }
    if (status.ok()) ++pushed;
    SetBehind(id, false);
    if (common::HasReason(status, common::Reason::kStaleEpoch)) Suspect(id);  // deleted, maybe
  }
  if (pushed > 0) log_.Info("session records brought to the kvstore", {{"sessions", pushed}});
  return taken;
}

}  // namespace

std::unique_ptr<SessionLog> CombineSessionLogs(std::unique_ptr<SessionLog> shared,
                                               std::unique_ptr<SessionLog> local,
                                               common::Logger& log, absl::Duration retry_every) {
  if (shared == nullptr) return local;
  if (local == nullptr) return shared;
  return std::make_unique<CombinedSessionLog>(std::move(shared), std::move(local), log,
                                              retry_every);
}

absl::StatusOr<std::unique_ptr<SessionLog>> OpenSessionLog(const SessionLogOptions& options,
                                                           common::Logger& log) {
  std::unique_ptr<SessionLog> shared;
  std::unique_ptr<SessionLog> local;
  if (!options.remote_target.empty()) shared = CreateRemoteSessionLog(options.remote_target);
  if (!options.directory.empty()) {
    ASSIGN_OR_RETURN(local, OpenDiskSessionLog(options.directory));
  }
  if (shared == nullptr && local == nullptr) {
    log.Warning("sessions end with this process: neither --kv-disk-dir nor --kvstore is set");
    return CreateMemorySessionLog();
  }
  return CombineSessionLogs(std::move(shared), std::move(local), log);
}

}  // namespace loopserve::kvstore
