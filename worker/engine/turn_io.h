// TurnIo: the two ends of a turn that touch the disk or the network: opening and closing it.
//
// Thread rule: stateless beyond its references; called on the engine's I/O threads, one sequence by
// one thread at a time. May block.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/engine/engine_metrics.h"
#include "worker/engine/sequence.h"
#include "worker/session/kv_cache.h"
#include "worker/session/session_cache.h"

namespace loopserve::worker {

class TurnIo {
 public:
  struct Limits {
    int64_t context_tokens = 0;  // prompt and answer
    int64_t vocab = 0;
    std::string policy;
    bool speculates = false;
  };
  TurnIo(Limits limits, SessionCache& sessions, KvCache& kv, const common::Clock& clock,
         EngineMetrics& metrics);

  // Claims the session, renders the new tokens, fills the sequence and tells the sink that the turn
  // has started. True: the turn was committed before; it has been replayed and the sink is done.
  absl::StatusOr<bool> Open(Sequence& sequence) const;

  // Commits the answer, keeps its KV and tells the sink. `saved` runs once the KV's blocks are let
  // go of by the store.
  void Close(Sequence& sequence, FinishReason reason, std::function<void()> saved) const;

 private:
  absl::StatusOr<bool> OpenSession(Sequence& sequence) const;
  absl::Status Render(Sequence& sequence, const kvstore::SessionRecord& record) const;
  absl::Status FitContext(Sequence& sequence) const;
  void Replay(Sequence& sequence) const;
  absl::Status Commit(Sequence& sequence, FinishReason reason) const;
  void KeepKv(Sequence& sequence, std::function<void()> saved) const;

  const Limits limits_;
  SessionCache& sessions_;
  KvCache& kv_;
  const common::Clock& clock_;
  EngineMetrics& metrics_;
};

TurnTimings TimingsOf(const Sequence& sequence);

}  // namespace loopserve::worker
