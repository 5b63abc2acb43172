// PodLeader: where the pods of a group join, in the process of rank 0.
//
// It listens for their streams (proto/pod), gives each one a *seat* (a range of ranks), tells it
// what to load, and keeps an eye on it. A seat whose pod has left is free for the next that comes,
// the same or another. It also listens, one port further, for the connections of the ranks'
// communicators.
//
// Thread rule: Create and destruction by one thread; the rest as RankPods says.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/log.h"
#include "worker/engine/rank_pods.h"

namespace loopserve::worker {

struct PodLeaderOptions {
  std::string listen;  // host:port for the pods; port 0: any two ports
  int tp = 1;
  int ranks_per_pod = 1;            // divides tp, and is less
  std::function<bool()> must_stop;  // whether to go on waiting for pods
  // How long a stream may take to say which pod it is.
  absl::Duration hello_patience = absl::Seconds(5);
};

// The pods' protocol is of this version; who speaks another one cannot join.
inline constexpr uint32_t kPodProtocol = 1;
// The largest message either side takes: a pod's part of a block of KV fits, with room to spare.
inline constexpr int kMaxPodMessageBytes = 64 << 20;

class PodLeader : public RankPods {
 public:
  // Listens. Unavailable, with the way out, when the address is taken.
  static absl::StatusOr<std::unique_ptr<PodLeader>> Create(const PodLeaderOptions& options,
                                                           common::Logger& log);
  // Where pods join.
  virtual int port() const = 0;
};

}  // namespace loopserve::worker
