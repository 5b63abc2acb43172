// A local cluster as processes: one kvstore, N workers, one router, in one directory.
//
//   <dir>/cluster.json     what runs (cluster_state.h)
//   <dir>/logs/<name>.log  standard output and error of each process
//   <dir>/kvstore, <dir>/workers/<name>   their disk tiers; they survive `down`, so that sessions
//   do
//
// Processes are started in that order, each once the one before has told its addresses in its
// ready line, and stopped in the reverse one.
//
// Thread rule: one thread; `Launch::stop` may be flipped by another.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "clients/cli/cluster_state.h"

namespace loopserve::clients {

struct ClusterOptions {
  std::string dir;
  std::string bin_dir;  // where loopserve-router and its siblings are
  std::string model;
  int workers = 2;
  int port = 8001;  // of the router; 0: every port is chosen by the system
  int tp = 1;
  int threads = 0;                                            // of each worker; 0: its own default
  std::string kv_device_bytes, kv_host_bytes, kv_disk_bytes;  // as given; "": default
  std::string kv_dtype, kv_codec;
  std::string store_host_bytes, store_disk_bytes;
  std::vector<std::string> router_args, worker_args, kvstore_args;  // handed through
  absl::Duration ready_timeout = absl::Minutes(2);
};

// Called with "starting w1 (2 of 4)" and the like.
using OnStep = std::function<void(absl::string_view)>;

// FailedPrecondition when one already runs in the directory or a port is taken, Internal with the
// tail of its log when a process does not come up (the others are stopped again), Cancelled when
// `*stop` became true.
absl::StatusOr<ClusterState> StartCluster(const ClusterOptions& options, const OnStep& on_step,
                                          const std::atomic<bool>* stop = nullptr);

// First the router, then the workers, then the kvstore: SIGTERM, then SIGKILL for what is left
// after `grace`. Removes cluster.json. Returns the names of those that had to be killed.
absl::StatusOr<std::vector<std::string>> StopCluster(const ClusterState& state,
                                                     absl::Duration grace, const OnStep& on_step);

// "ready grpc=HOST:PORT metrics=HOST:PORT [admin=HOST:PORT]" into the member's addresses; false for
// any other line.
bool ParseReadyLine(absl::string_view line, Member* member);

// The command line of one member; pure. Ports that are 0 are chosen by the system.
struct Ports {
  int grpc = 0, metrics = 0, admin = 0;
};
std::vector<std::string> KvStoreCommand(const ClusterOptions& options, const Ports& ports);
std::vector<std::string> WorkerCommand(const ClusterOptions& options, absl::string_view name,
                                       absl::string_view kvstore, const Ports& ports);
std::vector<std::string> RouterCommand(const ClusterOptions& options,
                                       const std::vector<Member>& workers, const Ports& ports);

}  // namespace loopserve::clients
