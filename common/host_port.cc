#include "common/host_port.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace loopserve::common {

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const size_t colon = text.rfind(':');
  HostPort parsed;
  if (colon != absl::string_view::npos) {
    absl::string_view host = text.substr(0, colon);
    const bool bracketed =
        absl::StartsWith(host, "[") && absl::EndsWith(host, "]") && absl::StrContains(host, ":");
    if (bracketed) host = host.substr(1, host.size() - 2);
    const absl::string_view port = text.substr(colon + 1);
    const absl::string_view never = bracketed ? "[]/ \t\r\n" : "[]/ \t\r\n:";
    if (!host.empty() && host.find_first_of(never) == absl::string_view::npos &&
        port.find_first_not_of("0123456789") == absl::string_view::npos &&
        absl::SimpleAtoi(port, &parsed.port) && parsed.port <= 65535) {
      parsed.host = std::string(host);
      return parsed;
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("'", text, "' is no host:port"));
}

std::string HostOf(const std::string& address) { return address.substr(0, address.rfind(':')); }

}  // namespace loopserve::common
