#include "common/error.h"

#include <array>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace loopserve::common {
namespace {

constexpr absl::string_view kPayloadUrl = "loopserve/error-info";

struct Row {
  Reason reason;
  absl::string_view name;
  absl::StatusCode code;
};

constexpr std::array kTable = {
    Row{Reason::kNone, "", absl::StatusCode::kUnknown},
    Row{Reason::kInvalidField, "INVALID_FIELD", absl::StatusCode::kInvalidArgument},
    Row{Reason::kContextLengthExceeded, "CONTEXT_LENGTH_EXCEEDED",
        absl::StatusCode::kInvalidArgument},
    Row{Reason::kMessageTooLarge, "MESSAGE_TOO_LARGE", absl::StatusCode::kResourceExhausted},
    Row{Reason::kInvalidApiKey, "INVALID_API_KEY", absl::StatusCode::kUnauthenticated},
    Row{Reason::kForbidden, "FORBIDDEN", absl::StatusCode::kPermissionDenied},
    Row{Reason::kModelNotFound, "MODEL_NOT_FOUND", absl::StatusCode::kNotFound},
    Row{Reason::kSessionNotFound, "SESSION_NOT_FOUND", absl::StatusCode::kNotFound},
    Row{Reason::kSessionExists, "SESSION_EXISTS", absl::StatusCode::kAlreadyExists},
    Row{Reason::kTurnMismatch, "TURN_MISMATCH", absl::StatusCode::kFailedPrecondition},
    Row{Reason::kStaleEpoch, "STALE_EPOCH", absl::StatusCode::kFailedPrecondition},
    Row{Reason::kSessionBusy, "SESSION_BUSY", absl::StatusCode::kAborted},
    Row{Reason::kQueueFull, "QUEUE_FULL", absl::StatusCode::kResourceExhausted},
    Row{Reason::kRateLimited, "RATE_LIMITED", absl::StatusCode::kResourceExhausted},
    Row{Reason::kDraining, "DRAINING", absl::StatusCode::kUnavailable},
    Row{Reason::kLoading, "LOADING", absl::StatusCode::kUnavailable},
    Row{Reason::kNoWorker, "NO_WORKER", absl::StatusCode::kUnavailable},
    Row{Reason::kWorkerLost, "WORKER_LOST", absl::StatusCode::kUnavailable},
    Row{Reason::kDeadline, "DEADLINE", absl::StatusCode::kDeadlineExceeded},
    Row{Reason::kQueueTimeout, "QUEUE_TIMEOUT", absl::StatusCode::kDeadlineExceeded},
    Row{Reason::kCancelled, "CANCELLED", absl::StatusCode::kCancelled},
    Row{Reason::kUnsupported, "UNSUPPORTED", absl::StatusCode::kUnimplemented},
    Row{Reason::kKvCorrupt, "KV_CORRUPT", absl::StatusCode::kDataLoss},
    Row{Reason::kInternal, "INTERNAL", absl::StatusCode::kInternal},
};

const Row& RowOf(Reason reason) { return kTable[static_cast<size_t>(reason)]; }

}  // namespace

absl::StatusCode CodeOf(Reason reason) { return RowOf(reason).code; }

absl::string_view NameOf(Reason reason) { return RowOf(reason).name; }

std::optional<Reason> ReasonFromName(absl::string_view name) {
  for (const Row& row : kTable) {
    if (row.reason != Reason::kNone && row.name == name) return row.reason;
  }
  return std::nullopt;
}

absl::Status MakeError(ErrorInfo info, absl::string_view message) {
  absl::Status status(CodeOf(info.reason), message);
  // reason \n retry_us \n epoch \n field: the field comes last, so that it may hold anything.
  status.SetPayload(
      kPayloadUrl,
      absl::Cord(absl::StrCat(
          NameOf(info.reason), "\n",
          info.retry_after ? absl::StrCat(absl::ToInt64Microseconds(*info.retry_after)) : "", "\n",
          info.current_epoch ? absl::StrCat(*info.current_epoch) : "", "\n", info.field)));
  return status;
}

absl::Status MakeError(Reason reason, absl::string_view message) {
  return MakeError(ErrorInfo{.reason = reason}, message);
}

absl::Status InvalidField(absl::string_view field, absl::string_view message) {
  return MakeError(ErrorInfo{.reason = Reason::kInvalidField, .field = std::string(field)},
                   absl::StrContains(message, field) ? std::string(message)
                                                     : absl::StrCat(field, ": ", message));
}

ErrorInfo InfoOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayloadUrl);
  if (!payload) return {};
  const std::string text(*payload);
  const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits('\n', 3));
  if (parts.size() != 4) return {};
  ErrorInfo info;
  info.reason = ReasonFromName(parts[0]).value_or(Reason::kNone);
  if (int64_t us = 0; absl::SimpleAtoi(parts[1], &us)) info.retry_after = absl::Microseconds(us);
  if (uint64_t epoch = 0; absl::SimpleAtoi(parts[2], &epoch)) info.current_epoch = epoch;
  info.field = parts[3];
  return info;
}

}  // namespace loopserve::common
