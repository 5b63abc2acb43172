#include "clients/cli/context.h"

#include <ostream>

#include "absl/strings/str_cat.h"
#include "clients/cli/cluster_state.h"
#include "common/error.h"

namespace loopserve::clients {
namespace {

constexpr char kDefaultEndpoint[] = "127.0.0.1:8001";
constexpr int kAdminPortOffset = 2;

// The admin port follows the public one by convention.
std::string AdminBeside(const std::string& endpoint) {
  const size_t colon = endpoint.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(endpoint.substr(colon + 1), &port)) {
    return endpoint;
  }
  return absl::StrCat(endpoint.substr(0, colon), ":", port + kAdminPortOffset);
}

}  // namespace

void AddJsonOption(CLI::App& command, Context& context) {
  command.add_flag("--json", context.json, "Print one JSON document on standard output");
}

void AddDirOption(CLI::App& command, Context& context) {
  command.add_option("--dir", context.dir, "The local cluster's directory (default: ~/.loopserve)");
}

void AddTargetOptions(CLI::App& command, Context& context) {
  AddDirOption(command, context);
  command.add_option("--endpoint", context.endpoint,
                     "Router, host:port (default: LOOPSERVE_ENDPOINT, the local cluster, or "
                     "127.0.0.1:8001)");
  command.add_option("--admin-endpoint", context.admin_endpoint,
                     "Router's admin port, host:port (default: beside the endpoint)");
}

std::string ClusterDir(const Context& context) {
  return context.dir.empty() ? context.env.StateDir() : context.dir;
}

Target ResolveTarget(const Context& context) {
  Target target;
  target.chat = context.endpoint;
  if (target.chat.empty() && context.dir.empty()) {
    target.chat = context.env.Get("LOOPSERVE_ENDPOINT");
  }
  if (target.chat.empty()) {
    absl::StatusOr<ClusterState> state = LoadClusterState(ClusterDir(context));
    if (state.ok()) {
      target.chat = state->endpoint();
      target.admin = state->admin_endpoint();
    }
  }
  if (target.chat.empty()) target.chat = kDefaultEndpoint;
  if (!context.admin_endpoint.empty()) target.admin = context.admin_endpoint;
  if (target.admin.empty()) target.admin = context.env.Get("LOOPSERVE_ADMIN_ENDPOINT");
  if (target.admin.empty()) target.admin = AdminBeside(target.chat);
  return target;
}

int Fail(const Context& context, const absl::Status& status) {
  const common::ErrorInfo info = common::InfoOf(status);
  *context.err << "loopserve: " << status.message();
  if (info.reason != common::Reason::kNone) {
    *context.err << " (" << common::NameOf(info.reason) << ")";
  }
  *context.err << std::endl;
  return IsUnreachable(status) ? kUnreachable : kFailed;
}

std::string DumpJson(const nlohmann::json& document, int indent) {
  return document.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

void PrintJson(const Context& context, const nlohmann::json& document) {
  *context.out << DumpJson(document, context.out_is_terminal ? 2 : -1) << std::endl;
}

}  // namespace loopserve::clients
