// The kvstore service: tiers and session records that several workers share, over gRPC.
//
// Nothing from the network is believed: keys have their size, chunks their order and checksum, and
// a stored record must be a sound block record of the key it came under. Blocking work runs on the
// server's own pool, never on a gRPC callback thread.
//
// Thread rule: Create, BeginDrain and Shutdown from one thread; the rest is gRPC's.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "kvstore/session_log.h"
#include "kvstore/tier/chain.h"

namespace loopserve::kvstore {

class KvServer {
 public:
  // Listens and serves. Unavailable, with the way out, when the address is taken. All parts must
  // outlive the server.
  static absl::StatusOr<std::unique_ptr<KvServer>> Create(const std::string& listen, Chain& tiers,
                                                          SessionLog& sessions,
                                                          common::Metrics& metrics);
  virtual ~KvServer() = default;
  virtual int port() const = 0;
  // Stops being ready; calls are still served.
  virtual void BeginDrain() = 0;
  // Ends running calls after `timeout` at the latest. Idempotent.
  virtual void Shutdown(absl::Duration timeout) = 0;
};

}  // namespace loopserve::kvstore
