#include "worker/pod/wire_status.h"

#include <string>

namespace loopserve::worker {

void StatusToProto(const absl::Status& status, pod::v1::Status* out) {
  out->set_code(static_cast<uint32_t>(status.code()));
  out->set_text(std::string(status.message()));
}

absl::Status StatusFromProto(const pod::v1::Status& status) {
  constexpr auto kHighest = static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);
  const auto code = status.code() <= kHighest ? static_cast<absl::StatusCode>(status.code())
                                              : absl::StatusCode::kUnknown;
  return absl::Status(code, status.text());
}

}  // namespace loopserve::worker
