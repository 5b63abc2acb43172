// RankPods: the ranks of a group that other processes ("pods") hold, as a RankGroup sees them.
//
// The leader, whose process holds rank 0, sees every other pod as RemoteRanks: something that
// executes a step like a rank of its own, and whose part of the KV lies in a Memory. A pod sees
// nobody, and has a RankMeeting alone: how its ranks meet the others. What speaks on the network is
// behind these (worker/pod).
//
// Thread rule: as each call says.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/kv_shape.h"
#include "kvstore/memory.h"
#include "worker/comm/rank_exchange.h"
#include "worker/engine/step.h"

namespace loopserve::worker {

// What the ranks of all pods have to agree about.
struct RankTerms {
  std::string model_fingerprint;
  int tp = 1;
  std::string backend;       // "cpu", "cuda", "reference"
  int activation_bits = 16;  // that were asked for
  kvstore::KvShape shape;    // of a logical block
  uint32_t min_blocks = 1;   // that the pool will have
  // In place of it, of what is free once the model is loaded; 0: not used.
  double kv_device_share = 0;
  int64_t max_step_tokens = 0;
  int64_t max_logit_rows = 0;
  bool shard_inputs = false;
  absl::Duration step_timeout;
  absl::Duration stall_timeout;
};

// How long the ranks of a pod may take to come back from a step that was given up. Then the pod
// ends, since a device that hangs so long will do nothing else.
inline constexpr absl::Duration kComeBack = absl::Seconds(30);

class RemoteRanks {
 public:
  virtual ~RemoteRanks() = default;
  virtual RankRange ranks() const = 0;
  // Runs the step there and waits for its end: how many calls of its communicator each rank came
  // to. Unavailable when the pod is not there any more. One thread.
  virtual absl::StatusOr<std::vector<uint64_t>> Execute(const StepPlan& plan) = 0;
  // Ends the step at hand, for this reason; a pod that does not come back from it soon is given up.
  // Waits for nothing. Any thread.
  virtual void Abort(const absl::Status& why) = 0;
  // The same of the step at hand, as the pod said last; zeros when there is none. Any thread.
  virtual std::vector<uint64_t> calls() const = 0;
  // The pod's part of the pool: its ranks' heads, in blocks as KvShape has them. Any thread.
  virtual kvstore::Memory& memory() = 0;
  virtual uint64_t weights_bytes() const = 0;
};

// How the ranks of one process meet those of the others.
class RankMeeting {
 public:
  virtual ~RankMeeting() = default;
  // The ranks of this process.
  virtual RankRange here() const = 0;
  // Takes in the pods that are there, so that steps and copies go to them from now on, and joins
  // all processes to a fresh exchange. No rank is at an older one. The caller's thread waits.
  // Unavailable when a pod has joined after the first `joins` (RankPods): the caller does not know
  // yet that the KV of that seat is gone, so nothing may reach it.
  virtual absl::StatusOr<std::shared_ptr<RankExchange>> Meet(uint64_t joins) = 0;
};

// What only the leader has.
class RankPods : public RankMeeting {
 public:
  // --- At the start, in this order, by one thread
  // From now on pods may join. InvalidArgument for terms that no pod can meet.
  virtual absl::Status Open(const RankTerms& terms) = 0;
  // Waits until all have joined and loaded their shards, with the same activation_format (Backend).
  // The blocks that all of them have room for, which is no less than the terms ask for. Cancelled
  // when this process is told to stop.
  virtual absl::StatusOr<uint32_t> AwaitLoaded(absl::string_view activation_format) = 0;
  // Makes the pods' pools, and waits until they are there.
  virtual absl::Status OpenPools(uint32_t blocks) = 0;

  // --- Later
  // In the order of their ranks, behind those of this process. Any thread.
  virtual std::span<RemoteRanks* const> others() = 0;
  // OK when all pods are there; Unavailable, with who is missing and why. Any thread.
  virtual absl::Status whole() const = 0;
  // Counts how often a pod has joined, with an empty pool. Any thread.
  virtual uint64_t joins() const = 0;
};

}  // namespace loopserve::worker
