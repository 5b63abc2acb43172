#include "kvstore/open_session_log.h"

#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "kvstore/tier/remote.h"

namespace loopserve::kvstore {
namespace {

bool Unreachable(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// Of two copies written under one epoch, that is by one owner, the later one counts, also when it
// has fewer turns: a rewind takes some away.
template <typename T>
bool Newer(const T& a, size_t a_turns, const T& b, size_t b_turns) {
  return std::tuple(a.epoch, a.used_unix_us, a_turns) >
         std::tuple(b.epoch, b.used_unix_us, b_turns);
}

class CombinedSessionLog final : public SessionLog {
 public:
  CombinedSessionLog(std::unique_ptr<SessionLog> shared, std::unique_ptr<SessionLog> local,
                     common::Logger& log)
      : shared_(std::move(shared)), local_(std::move(local)), log_(log) {}

  absl::Status Put(const SessionRecord& record) override {
    const absl::Status status = shared_->Put(record);
    if (status.ok()) {
      const absl::Status copied = local_->Put(record);
      // A newer epoch was written here while the service could not be reached.
      if (common::HasReason(copied, common::Reason::kStaleEpoch)) return copied;
      // Any other failure: an old copy on disk loses against the service when it is read.
      Report(copied, "the local copy of a session record was not written");
      return absl::OkStatus();
    }
    if (!Unreachable(status)) return status;
    Report(status, "the kvstore is unreachable; a session record is only on the local disk");
    return local_->Put(record);
  }

  absl::StatusOr<SessionRecord> Get(const common::SessionId& id) override {
    absl::StatusOr<SessionRecord> shared = shared_->Get(id);
    absl::StatusOr<SessionRecord> local = local_->Get(id);
    if (shared.ok() && local.ok()) {
      return Newer(*local, local->turns.size(), *shared, shared->turns.size()) ? local : shared;
    }
    if (shared.ok()) return shared;
    // Nobody knows whether the service, which cannot be asked, has what is not here.
    if (absl::IsNotFound(local.status())) return shared;
    return local;
  }

  absl::Status Erase(const common::SessionRef& ref) override {
    const absl::Status status = shared_->Erase(ref);
    if (!status.ok()) return status;  // an erased copy would come back from the service
    return local_->Erase(ref);
  }

  absl::StatusOr<std::vector<Summary>> List() override {
    ASSIGN_OR_RETURN(std::vector<Summary> all, local_->List());
    absl::StatusOr<std::vector<Summary>> shared = shared_->List();
    if (!shared.ok()) {
      if (Unreachable(shared.status())) return all;
      return shared.status();
    }
    absl::flat_hash_map<std::string, Summary> merged;
    for (Summary& summary : all) merged.emplace(summary.id.value(), std::move(summary));
    for (Summary& summary : *shared) {
      const auto it = merged.find(summary.id.value());
      if (it == merged.end()) {
        merged.emplace(summary.id.value(), std::move(summary));
      } else if (!Newer(it->second, it->second.turns, summary, summary.turns)) {
        it->second = std::move(summary);
      }
    }
    all.clear();
    for (auto& [id, summary] : merged) all.push_back(std::move(summary));
    return all;
  }

 private:
  void Report(const absl::Status& status, absl::string_view event) {
    if (!status.ok()) log_.Warning(event, {{"status", status.ToString()}});
  }

  const std::unique_ptr<SessionLog> shared_;
  const std::unique_ptr<SessionLog> local_;
  common::Logger& log_;
};

}  // namespace

std::unique_ptr<SessionLog> CombineSessionLogs(std::unique_ptr<SessionLog> shared,
                                               std::unique_ptr<SessionLog> local,
                                               common::Logger& log) {
  if (shared == nullptr) return local;
  if (local == nullptr) return shared;
  return std::make_unique<CombinedSessionLog>(std::move(shared), std::move(local), log);
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
