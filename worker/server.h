// The worker's gRPC service: requests in, engine and session calls out. It validates and
// translates; what happens is decided below.
//
// Turns never block a gRPC thread: Submit hands over and the engine answers through TurnStream.
// Session operations may wait for the session log and run on a pool of their own.
//
// Thread rule: Create, BeginDrain, DrainAndPark and Shutdown from one thread; the rest is gRPC's.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/log.h"
#include "kvstore/store.h"
#include "worker/engine/engine.h"
#include "worker/engine/rank_group.h"
#include "worker/session/kv_cache.h"
#include "worker/session/session_cache.h"
#include "worker/text/chat_template.h"
#include "worker/text/tokenizer.h"

namespace loopserve::worker {

struct ServerOptions {
  std::string worker_id;
  std::string listen;
  std::string model_name;
  int max_queue = 64;
  // Of sessions whose client named none; zero: until deleted.
  absl::Duration session_ttl = absl::ZeroDuration();
  absl::Duration drain_timeout = absl::Seconds(30);
};

// What the service calls. All must outlive it; `store` may be null.
struct ServerParts {
  Engine& engine;
  SessionCache& sessions;
  RankGroup& ranks;
  KvCache& kv;
  kvstore::KvStore* store;
  const Tokenizer& tokenizer;
  const ChatTemplate* chat_template;  // null: the model has none; only completions work
  common::Logger& log;
};

class WorkerServer {
 public:
  // Listens and serves. Unavailable, with the way out, when the address is taken.
  static absl::StatusOr<std::unique_ptr<WorkerServer>> Create(const ServerOptions& options,
                                                              const ServerParts& parts);
  virtual ~WorkerServer() = default;
  virtual int port() const = 0;
  // Stops being ready; turns are still taken.
  virtual void BeginDrain() = 0;
  // Stops being ready, refuses new turns, finishes the running ones by the drain timeout and parks
  // every session; returns how many.
  virtual size_t DrainAndPark() = 0;
  // Ends all calls and stops listening. Idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace loopserve::worker
