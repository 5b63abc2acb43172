#include "worker/engine/turn.h"

namespace loopserve::worker {

absl::string_view NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

FinishReason FinishReasonFromName(absl::string_view name) {
  if (name == "length") return FinishReason::kLength;
  return name == "cancelled" ? FinishReason::kCancelled : FinishReason::kStop;
}

}  // namespace loopserve::worker
