#include "kvstore/config.h"

#include "common/log.h"
#include "common/status_macros.h"

namespace loopserve::kvstore {

void KvStoreConfig::Declare(common::FlagSet& flags) {
  flags.Add("listen", &listen, "gRPC address (port 0: any)");
  flags.Add("metrics-listen", &metrics_listen, "Address of /metrics (port 0: any)");
  flags.Add("dir", &dir,
            "Directory of the disk tier and the session records (empty: nothing survives the "
            "process)");
  flags.AddBytes("host-bytes", &host_bytes, "Capacity of the host tier");
  flags.AddBytes("disk-bytes", &disk_bytes, "Capacity of the disk tier");
  flags.AddDuration("drain-settle", &drain_settle,
                    "How long workers get to notice that this service stops");
  flags.AddDuration("drain-timeout", &drain_timeout, "How long running calls may take at stop");
  flags.Add("log-format", &log_format, "text or json");
  flags.Add("log-level", &log_level, "debug, info, warning or error");
  flags.AddCheck([this] { return Check(); });
}

absl::Status KvStoreConfig::Check() const {
  RETURN_IF_ERROR(common::CheckAddress("listen", listen));
  RETURN_IF_ERROR(common::CheckAddress("metrics-listen", metrics_listen));
  if (host_bytes == 0) return absl::InvalidArgumentError("--host-bytes must be more than 0");
  if (log_format != "text" && log_format != "json") {
    return absl::InvalidArgumentError("--log-format must be text or json");
  }
  return common::ParseLogLevel(log_level).status();
}

}  // namespace loopserve::kvstore
