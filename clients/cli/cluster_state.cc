#include "clients/cli/cluster_state.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::clients {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;

absl::Status NotOurs(const std::string& path) {
  return absl::DataLossError(
      absl::StrCat(path, " is damaged; stop the processes it named by hand and remove it"));
}

std::string TextOr(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

uint64_t NumberOr(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

Member MemberFromJson(const json& object) {
  Member member;
  member.name = TextOr(object, "name");
  member.role = TextOr(object, "role");
  member.process.pid = static_cast<pid_t>(NumberOr(object, "pid"));
  member.process.start_ticks = NumberOr(object, "start_ticks");
  member.grpc = TextOr(object, "grpc");
  member.metrics = TextOr(object, "metrics");
  member.admin = TextOr(object, "admin");
  member.log = TextOr(object, "log");
  return member;
}

}  // namespace

const Member* ClusterState::Find(absl::string_view name) const {
  for (const Member& member : members) {
    if (member.name == name) return &member;
  }
  return nullptr;
}

std::vector<const Member*> ClusterState::WithRole(absl::string_view role) const {
  std::vector<const Member*> found;
  for (const Member& member : members) {
    if (member.role == role) found.push_back(&member);
  }
  return found;
}

std::string ClusterState::endpoint() const {
  const Member* router = Find("router");
  return router == nullptr ? "" : router->grpc;
}

std::string ClusterState::admin_endpoint() const {
  const Member* router = Find("router");
  return router == nullptr ? "" : router->admin;
}

std::vector<const Member*> ClusterState::Running() const {
  std::vector<const Member*> running;
  for (const Member& member : members) {
    if (IsRunning(member.process)) running.push_back(&member);
  }
  return running;
}

std::string ClusterStatePath(const std::string& dir) { return absl::StrCat(dir, "/cluster.json"); }

absl::StatusOr<ClusterState> LoadClusterState(const std::string& dir) {
  const std::string path = ClusterStatePath(dir);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const json document = json::parse(text, nullptr, false);
  if (!document.is_object() || NumberOr(document, "version") != kVersion) return NotOurs(path);
  const auto members = document.find("members");
  if (members == document.end() || !members->is_array()) return NotOurs(path);
  ClusterState state;
  state.dir = dir;
  state.model = TextOr(document, "model");
  for (const json& member : *members) {
    if (!member.is_object()) return NotOurs(path);
    state.members.push_back(MemberFromJson(member));
  }
  return state;
}

json ToJson(const ClusterState& state) {
  json members = json::array();
  for (const Member& member : state.members) {
    json object = {{"name", member.name},
                   {"role", member.role},
                   {"pid", static_cast<uint64_t>(member.process.pid)},
                   {"start_ticks", member.process.start_ticks},
                   {"grpc", member.grpc},
                   {"metrics", member.metrics},
                   {"log", member.log}};
    if (!member.admin.empty()) object["admin"] = member.admin;
    members.push_back(std::move(object));
  }
  return {{"version", kVersion},
          {"dir", state.dir},
          {"model", state.model},
          {"endpoint", state.endpoint()},
          {"members", std::move(members)}};
}

absl::Status SaveClusterState(const ClusterState& state) {
  return WriteFileAtomically(ClusterStatePath(state.dir), ToJson(state).dump(2) + "\n");
}

}  // namespace loopserve::clients
