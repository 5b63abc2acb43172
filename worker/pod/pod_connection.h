// PodConnection: one pod that has joined, as its leader sees it: steps and copies of blocks go out,
// answers come in.
//
// It knows messages, not streams: `Wire` is how they leave, `On` how they arrive. It ends once,
// with a reason, which everybody who waits for an answer gets; then, or when it is given up (Drop),
// the stream ends too.
//
// Thread rule: On from one thread, Execute from one; the rest from any.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "loopserve/pod/v1/pod.pb.h"
#include "worker/comm/rank_exchange.h"
#include "worker/engine/step.h"

namespace loopserve::worker {

class PodConnection final {
 public:
  // `send` takes a message, bulk or not, and waits for nothing; `end` makes the stream end.
  struct Wire {
    std::function<void(pod::v1::JoinResponse, bool bulk)> send;
    std::function<void()> end;
  };

  PodConnection(RankRange ranks, std::string pod, Wire wire);

  RankRange ranks() const { return ranks_; }
  const std::string& pod() const { return pod_; }

  void Send(pod::v1::JoinResponse message, bool bulk = false);

  // --- Steps: as RemoteRanks has them
  absl::StatusOr<std::vector<uint64_t>> Execute(const StepPlan& plan);
  void Abort(const absl::Status& why);
  std::vector<uint64_t> calls() const;

  // --- Copies
  // Sends the request, which gets a tag of its own. `done` is called once, with the block's bytes
  // if it asked for them, before this call or a later one returns; after that the bytes are gone.
  using CopyDone = absl::AnyInvocable<void(const absl::Status&, const std::string& bytes)>;
  void Read(uint32_t block, CopyDone done);
  void Write(uint32_t block, std::string bytes, CopyDone done);
  void Copy(uint32_t from, uint32_t to, CopyDone done);

  // --- What the stream tells
  // An answer or a sign of life. InvalidArgument for what answers nothing: the stream has to end.
  absl::Status On(const pod::v1::JoinRequest& message);
  // The stream has ended, or is about to.
  void End(const absl::Status& why);
  // OK, or what everybody is told who waits.
  absl::Status ended() const;
  // Ends it from this side.
  void Drop(const absl::Status& why);
  // To be called several times a second. Drops a pod that has been silent for too long.
  void Watch(absl::Time now);

 private:
  void StartCopy(pod::v1::JoinResponse message, uint64_t tag, CopyDone done, bool bulk);
  // Takes `done` unless the pod has left.
  absl::Status Enter(uint64_t tag, CopyDone& done);
  uint64_t NextTag();
  absl::Status OnStepDone(const pod::v1::StepDone& done);
  absl::Status OnAlive(const pod::v1::Alive& alive);
  absl::Status OnCopyDone(const pod::v1::CopyDone& done);
  absl::Status TakeCalls(const google::protobuf::RepeatedField<uint64_t>& calls)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const RankRange ranks_;
  const std::string pod_;
  const Wire wire_;
  mutable absl::Mutex mutex_;
  absl::Status ended_ ABSL_GUARDED_BY(mutex_);
  uint64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;    // begun so far
  bool running_ ABSL_GUARDED_BY(mutex_) = false;  // the last one of them
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> calls_ ABSL_GUARDED_BY(mutex_);  // [rank], in the step at hand
  absl::Time watched_ ABSL_GUARDED_BY(mutex_);
  absl::Duration silent_ ABSL_GUARDED_BY(mutex_);    // since the last sign of life
  absl::Duration expected_ ABSL_GUARDED_BY(mutex_);  // back from an aborted step
  uint64_t tags_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<uint64_t, CopyDone> copies_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::worker
