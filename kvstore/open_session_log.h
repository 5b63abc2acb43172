// The session log a worker uses: the shared service's, with a copy on its own disk.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/log.h"
#include "kvstore/session_log.h"

namespace loopserve::kvstore {

struct SessionLogOptions {
  std::string directory;      // empty: no copy on disk
  std::string remote_target;  // host:port of a kvstore service; empty: none
};

// With both, a record is written to both. The service is the authority: its refusal (STALE_EPOCH)
// is final. While it cannot be reached the copy on disk suffices, and since a record is always
// written whole, the session's next commit brings the service up to date. Reads take the newest of
// what is found. With neither, records end with the process.
absl::StatusOr<std::unique_ptr<SessionLog>> OpenSessionLog(const SessionLogOptions& options,
                                                           common::Logger& log);

// The same of given parts; either may be null, not both.
std::unique_ptr<SessionLog> CombineSessionLogs(std::unique_ptr<SessionLog> shared,
                                               std::unique_ptr<SessionLog> local,
                                               common::Logger& log);

}  // namespace loopserve::kvstore
