// Where a server listens, as people write it: "host:port", an IPv6 address in brackets.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace loopserve::common {

struct HostPort {
  std::string host;  // a name or an address, without brackets: what resolvers take
  int port = 0;      // 0 ... 65535
};

// InvalidArgument for anything else, such as a scheme in front ("dns:///host:80").
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// What stands in front of the port, brackets included: for writing another port behind it.
std::string HostOf(const std::string& address);

}  // namespace loopserve::common
