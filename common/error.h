// Errors with a public reason: one table for every error a client can see.
//
// Code anywhere returns absl::Status; where the client should learn more than a code, it is made
// here and carries its Reason (and details) as a payload. common/rpc turns it into a gRPC status
// with google.rpc details at the process's edge, and nowhere else. Messages name the field, the
// limit and the value; never a path or another tenant's id.
#pragma once

#include <optional>
#include <string>
#include "absl/strings/string_view.h"

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace loopserve::common {

// Order and names are those of error.cc's table and of proto loopserve.types.v1.ErrorReason.
enum class Reason {
  kNone = 0,
  kInvalidField,
  kContextLengthExceeded,
  kMessageTooLarge,
  kInvalidApiKey,
  kForbidden,
  kModelNotFound,
  kSessionNotFound,
  kSessionExists,
  kTurnMismatch,
  kStaleEpoch,
  kSessionBusy,
  kQueueFull,
  kRateLimited,
  kDraining,
  kLoading,
  kNoWorker,
  kWorkerLost,
  kDeadline,
  kQueueTimeout,
  kCancelled,
  kUnsupported,
  kKvCorrupt,
  kInternal,
};

struct ErrorInfo {
  Reason reason = Reason::kNone;
  std::string field;                          // for kInvalidField: "sampling.top_p"
  std::optional<absl::Duration> retry_after;  // present = the client may retry
  std::optional<uint64_t> current_epoch;      // for kStaleEpoch
};

// The canonical code of a reason, e.g. kSessionBusy -> Aborted.
absl::StatusCode CodeOf(Reason reason);
// "SESSION_BUSY", as it travels in google.rpc.ErrorInfo.
absl::string_view NameOf(Reason reason);
std::optional<Reason> ReasonFromName(absl::string_view name);

absl::Status MakeError(Reason reason, absl::string_view message);
absl::Status MakeError(ErrorInfo info, absl::string_view message);
// Of a bad request field; the text names it, whether `message` does or not.
absl::Status InvalidField(absl::string_view field, absl::string_view message);

// What MakeError attached; a default ErrorInfo when nothing was.
ErrorInfo InfoOf(const absl::Status& status);
inline bool HasReason(const absl::Status& status, Reason reason) {
  return InfoOf(status).reason == reason;
}

}  // namespace loopserve::common
