// Engine: the step loop. It admits turns, plans steps (Scheduler), runs them on the ranks
// (RankGroup), which choose tokens as the plan says, and hands these to sinks.
//
// One thread, the step loop, owns every live sequence. I/O never runs on it: sessions are opened
// and committed, and KV is looked up, on the engine's few I/O threads, while other sequences keep
// stepping. A step that fails ends the turns that were in it, with the cause; the engine lives on.
//
// The life of a turn:
//
// A decoding sequence may get more than one token from a step: see speculation.h.
//
//   Submit -> opening (I/O: claim the session, render) -> waiting -> restoring (blocks held, tiers
//   load) -> running (prefill chunks, then one token per step) -> closing (I/O: commit) ->
//   done
//
// Thread rule: all public calls are safe from any thread and do not block, but for Drain and Stop.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/metrics.h"
#include "worker/engine/rank_group.h"
#include "worker/engine/speculation.h"
#include "worker/engine/turn.h"
#include "worker/session/kv_cache.h"
#include "worker/session/session_cache.h"

namespace loopserve::worker {

struct EngineOptions {
  std::string model_name;         // label of the metrics
  int64_t max_batch = 16;         // sequences in one step
  int64_t max_step_tokens = 256;  // rows of one step; more than max_batch
  // How long a step may take while somebody waits for the next token; zero: any time.
  absl::Duration max_step_time;
  int64_t max_queue = 64;                      // turns that wait or are being opened
  int64_t context_tokens = 0;                  // 0: the model's; never more
  std::vector<common::TokenId> eos_token_ids;  // end a turn unless ignore_eos
  std::string policy = "full";
  SpeculationOptions speculation;
  // Rows whose logits the model can give in one step; what is more than max_batch is for guesses.
  int64_t max_logit_rows = 0;
  int io_threads = 4;
};

struct EngineLoad {
  int64_t running = 0;  // holds blocks: restoring, prefilling or decoding
  int64_t waiting = 0;  // opening or queued
  int64_t closing = 0;  // committing
};

class Engine {
 public:
  // All references must outlive the engine. InvalidArgument for options that contradict each other
  // or the model.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineOptions& options, RankGroup& ranks, KvCache& kv, SessionCache& sessions,
      const common::Clock& clock, common::Metrics& metrics, common::Logger& log);
  // Stops if Stop was not called.
  virtual ~Engine() = default;

  // Takes the turn, or refuses it now: QUEUE_FULL and DRAINING (both with RetryInfo),
  // INVALID_FIELD. After success the sink hears OnDone exactly once; after a refusal, nothing.
  virtual absl::StatusOr<TurnTicket> Submit(TurnSpec spec, std::shared_ptr<TokenSink> sink) = 0;
  // The client left. The turn's blocks are free within one step; OnDone comes with CANCELLED, or
  // with a result when commit_partial asked for it. Unknown tickets are ignored.
  virtual void Cancel(TurnTicket ticket) = 0;

  virtual EngineLoad load() const = 0;
  // False when there is work but no step has ended for `limit`: the liveness probe.
  virtual bool alive(absl::Duration limit) const = 0;
  // The longest prompt plus answer: the model's context, or less if the device pool is smaller.
  virtual int64_t context_tokens() const = 0;

  // Refuses new turns (DRAINING) and waits for the others. DeadlineExceeded when `timeout` passed
  // first; turns go on then.
  virtual absl::Status Drain(absl::Duration timeout) = 0;
  // Refuses new turns, ends all others with UNAVAILABLE, joins the threads. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace loopserve::worker
