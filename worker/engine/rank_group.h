// RankGroup: the tensor-parallel ranks of one model, as threads of this process and, where there
// are `pods` (rank_pods.h), of other processes.
//
// Each rank has its own Backend, Communicator and Model shard, and its arena of the KvBlockPool.
// Run executes one step on all ranks in lockstep; the caller (the engine's leader) has made every
// decision already, ranks only execute. A group of one rank is no special case.
//
// A rank that fails, that falls silent while the others wait for it (rank_watch.h), or that does
// not finish within `step_timeout`, aborts the step on all ranks: Run then returns the cause, and
// the group heals itself at the next Run (fresh communicators; weights stay). While a stalled rank
// has not come back, Run returns Unavailable, at once.
//
// Thread rule: one thread calls Run. The accessors are safe from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/cpus.h"
#include "common/log.h"
#include "kvstore/block_pool.h"
#include "worker/backend/backend.h"
#include "worker/comm/communicator.h"
#include "worker/comm/rank_exchange.h"
#include "worker/engine/step.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::worker {

class RankMeeting;
class RankPods;

inline constexpr absl::Duration kStallTimeout = absl::Milliseconds(1250);

struct RankGroupOptions {
  int tp = 1;
  std::optional<RankRange> here;  // the ranks of this process; unset: all
  int threads = 0;                // of all ranks here; 0: all cores that the process may use
  common::PinThreads pin_threads = common::PinThreads::kAuto;
  std::string backend = "auto";
  std::string isa = "auto";
  int activation_bits = 16;  // see BackendOptions
  int32_t block_tokens = 32;
  kvstore::KvDtype kv_dtype = kvstore::KvDtype::kBf16;
  uint64_t kv_device_bytes = uint64_t{1} << 30;  // of the pool, on all ranks together
  uint32_t kv_blocks = 0;                        // in place of kv_device_bytes; 0: not used
  // The pool's part of the memory that is free once the model is loaded; 0: kv_device_bytes counts.
  double kv_device_share = 0;
  uint64_t kv_host_bytes = 0;  // what the host tier may grow to: part of the predicted need
  ModelOptions model;
  // For a whole step, however much work it is. Of one rank alone it is all that is known.
  absl::Duration step_timeout = absl::Seconds(120);
  // How long a rank may be missed by the others before it counts as stalled, where these needed
  // less than a quarter of it to come to the same call; else four times as long as they needed
  // (rank_watch.h). With the time that the others get to notice the abort, a stalled rank ends a
  // step of usual length within two seconds.
  absl::Duration stall_timeout = kStallTimeout;
  // Bytes the machine can give; unset: what the system reports (MemAvailable, container limit).
  std::optional<uint64_t> available_bytes;
};

class RankGroup {
 public:
  // Loads the model on every rank and makes the pool. The need is predicted before anything is
  // loaded: ResourceExhausted with both numbers and the way out when it does not fit.
  // InvalidArgument for more ranks than query heads, or a pool of less than one block.
  // With `pods`, which must outlive the group, it waits until they have done the same.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Create(const GgufFile& file,
                                                           const RankGroupOptions& options,
                                                           common::Logger& log,
                                                           RankPods* pods = nullptr);

  // The same from given parts: for ranks that fail on purpose. Also what Backend::ConnectRanks
  // says.
  struct Rank {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Model> model;
    int cpu = -1;  // that the rank's own thread is pinned to; -1: to none
  };
  static absl::StatusOr<std::unique_ptr<RankGroup>> Assemble(
      std::vector<Rank> ranks, std::unique_ptr<kvstore::KvBlockPool> pool,
      absl::Duration step_timeout, common::Logger& log,
      absl::Duration stall_timeout = kStallTimeout, RankPods* pods = nullptr);

  // Waits for the ranks, a stalled one included.
  virtual ~RankGroup() = default;

  // The first rank's choices, or logits, in host memory, valid until the next Run. The plan is
  // shared because a stalled rank may outlast the call.
  virtual absl::StatusOr<StepResult> Run(std::shared_ptr<const StepPlan> plan) = 0;

  // Heals the group if it is broken and can be healed, so that what needs to be known of that is
  // known before a step is planned: returns how often the pool's blocks have lost their KV so far,
  // since the part that a pod held went with it. Run fails when it finds that out itself. The
  // caller of Run.
  virtual uint64_t Refresh() { return 0; }
  // How soon Refresh wants to be called again when there is no step to run.
  virtual absl::Duration refresh_within() const { return absl::InfiniteDuration(); }
  virtual int size() const = 0;  // ranks, those of other processes included
  virtual const ModelConfig& config() const = 0;
  virtual kvstore::KvBlockPool& pool() = 0;
  virtual std::string backend_name() const = 0;
  virtual std::string activation_format() const = 0;  // the backend's
  virtual bool warms_up() const = 0;                  // the backend's
  virtual size_t resident_bytes() const = 0;
  // Whether the rank took part in the last step.
  virtual bool rank_up(int rank) const = 0;
  // OK when all its processes are there and its ranks are connected; else the reason.
  virtual absl::Status whole() const { return absl::OkStatus(); }
  // A rank's device has failed for good (its context is broken, say), or a rank has not come back
  // from a step for `step_timeout` since that was given up: Run returns Unavailable, and probably
  // only a new process helps.
  virtual bool lost() const { return false; }
};

// The ranks of a process that follows a leader (rank_pods.h). The leader alone knows when the group
// has to be connected, at first too, and when a step may follow another.
class FollowingRanks : public RankGroup {
 public:
  // Not connected yet. `meeting` must outlive it.
  static absl::StatusOr<std::unique_ptr<FollowingRanks>> Assemble(
      std::vector<Rank> ranks, std::unique_ptr<kvstore::KvBlockPool> pool,
      absl::Duration step_timeout, common::Logger& log, absl::Duration stall_timeout,
      RankMeeting& meeting);

  // Fresh communicators. The caller of Run.
  virtual absl::Status Reconnect() = 0;
  // Waits until every rank has come back from the last step, for `patience` at most: of each rank,
  // the calls of its communicator that it came to, which `calls` forgets. DeadlineExceeded: the
  // group is `lost`. The caller of Run.
  virtual absl::StatusOr<std::vector<uint64_t>> Settle(absl::Duration patience) = 0;
  // Ends the step at hand on all ranks, for this reason. Any thread.
  virtual void Abort(const absl::Status& why) = 0;
  // Of each rank, the calls of its communicator that the step at hand has come to. Any thread.
  virtual std::vector<uint64_t> calls() const = 0;
};

}  // namespace loopserve::worker
