// The session log a worker uses: the shared service's, with a copy on its own disk.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/log.h"
#include "kvstore/session_log.h"

namespace loopserve::kvstore {

struct SessionLogOptions {
  std::string directory;      // empty: no copy on disk
  std::string remote_target;  // host:port of a kvstore service; empty: none
};

// With both, a record is written to both. The service is the authority: its refusal (STALE_EPOCH)
// is final. While it cannot be reached, or cannot write, the copy on disk suffices; what the
// service lacks is written to it in the background as soon as it takes it, also after a restart of
// this process. Reads take the newest of what is found, and nothing that the service knows as
// deleted: such copies are dropped in the background, too. With neither, records end with the
// process.
absl::StatusOr<std::unique_ptr<SessionLog>> OpenSessionLog(const SessionLogOptions& options,
                                                           common::Logger& log);

// The same of given parts; either may be null, not both. The service is asked every `retry_every`
// whether it is there; what it has not taken is tried again twice as late each time, up to 5 s.
std::unique_ptr<SessionLog> CombineSessionLogs(
    std::unique_ptr<SessionLog> shared, std::unique_ptr<SessionLog> local, common::Logger& log,
    absl::Duration retry_every = absl::Milliseconds(500));

}  // namespace loopserve::kvstore
