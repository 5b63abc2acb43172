// PodFollower: a process that holds ranks of a leader's model and serves nothing else.
//
// It dials the leader until that is there, loads what it is assigned, and then executes: steps in
// order, on a RankGroup of its own ranks; copies of blocks beside them. When the leader is gone it
// aborts what runs and dials again, keeping its weights for an equal assignment.
//
// Thread rule: Run on one thread; Stop from any.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/log.h"
#include "worker/engine/rank_group.h"
#include "worker/model/gguf.h"

namespace loopserve::worker {

struct PodFollowerOptions {
  std::string leader;  // host:port of its --pod-listen
  std::string pod;     // this one's name, for the leader's log
  // What is of this process: backend, isa, threads, pinning, memory. The leader says the rest.
  RankGroupOptions local;
};

class PodFollower {
 public:
  // `file` and `log` must outlive it.
  static std::unique_ptr<PodFollower> Create(PodFollowerOptions options, const GgufFile& file,
                                             common::Logger& log);
  virtual ~PodFollower() = default;

  // Until Stop (OK), or until the leader refuses this pod for good: another model, another release,
  // a backend that is not here, too little memory.
  virtual absl::Status Run() = 0;
  virtual void Stop() = 0;
  // After Run: a rank hangs in its device, and destroying this object would wait for it. The
  // process has to end without.
  virtual bool lost() const = 0;
};

}  // namespace loopserve::worker
