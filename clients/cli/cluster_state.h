// cluster.json: what `loopserve up` started, for every later command.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/process.h"
#include "nlohmann/json.hpp"

namespace loopserve::clients {

// One process of a cluster. Addresses are host:port as its ready line told.
struct Member {
  std::string name;  // router, w1, w2, ..., kvstore
  std::string role;  // router, worker, kvstore
  ProcessId process;
  std::string grpc;
  std::string metrics;
  std::string admin;  // router only
  std::string log;
};

struct ClusterState {
  std::string dir;
  std::string model;
  std::vector<Member> members;  // in the order they were started

  const Member* Find(absl::string_view name) const;
  std::vector<const Member*> WithRole(absl::string_view role) const;
  // Of the router; empty when there is none.
  std::string endpoint() const;
  std::string admin_endpoint() const;
  std::vector<const Member*> Running() const;
};

std::string ClusterStatePath(const std::string& dir);
// NotFound when nothing was started in `dir`; DataLoss when the file is not ours to read.
absl::StatusOr<ClusterState> LoadClusterState(const std::string& dir);
absl::Status SaveClusterState(const ClusterState& state);
nlohmann::json ToJson(const ClusterState& state);

}  // namespace loopserve::clients
