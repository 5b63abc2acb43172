// PodSeat: the ranks of a group that one pod at a time holds.
//
// Who sits down has *joined*; once loaded and with a pool it is *ready*; steps and copies go to the
// pod that was *admitted* last, which RankPods::Meet does between two steps.
//
// Thread rule: as RemoteRanks says; the rest from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "worker/engine/rank_pods.h"
#include "worker/pod/pod_connection.h"
#include "worker/pod/pod_memory.h"

namespace loopserve::worker {

class PodSeat final : public RemoteRanks {
 public:
  // `block_bytes` are of these ranks' part of a block.
  PodSeat(RankRange ranks, size_t block_bytes);

  // --- As RemoteRanks
  RankRange ranks() const override { return ranks_; }
  absl::StatusOr<std::vector<uint64_t>> Execute(const StepPlan& plan) override;
  void Abort(const absl::Status& why) override;
  std::vector<uint64_t> calls() const override;
  kvstore::Memory& memory() override { return memory_; }
  uint64_t weights_bytes() const override;

  // --- Who sits here
  // False when somebody does already.
  bool Take(std::shared_ptr<PodConnection> pod);
  // Does nothing if another sits here by now.
  void Leave(const PodConnection& pod);
  // Null: nobody.
  std::shared_ptr<PodConnection> pod() const;
  void SetLoaded(const pod::v1::Loaded& loaded);
  // The pod is the `join`th that has joined the group.
  void SetReady(uint64_t join);
  bool loaded() const;
  uint32_t max_blocks() const;
  std::string activation_format() const;
  // OK for a pod that is ready; Unavailable, with what is missing and why.
  absl::Status ready() const;
  // Who is ready here, unless it joined after the first `joins`, gets the steps and copies from now
  // on.
  absl::StatusOr<std::shared_ptr<PodConnection>> Admit(uint64_t joins);

 private:
  std::shared_ptr<PodConnection> admitted() const;
  absl::Status Ready() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const RankRange ranks_;
  PodMemory memory_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<PodConnection> pod_ ABSL_GUARDED_BY(mutex_);       // shared with its stream
  std::shared_ptr<PodConnection> admitted_ ABSL_GUARDED_BY(mutex_);  // may have left
  pod::v1::Loaded loaded_ ABSL_GUARDED_BY(mutex_);
  bool is_loaded_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_ready_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t join_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status why_empty_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::worker
