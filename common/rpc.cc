#include "common/rpc.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace loopserve::common {
namespace {

constexpr char kDomain[] = "loopserve";

void FillDetails(const ErrorInfo& info, const std::string& message, google::rpc::Status* out) {
  google::rpc::ErrorInfo error;
  error.set_reason(std::string(NameOf(info.reason)));
  error.set_domain(kDomain);
  if (info.current_epoch) {
    (*error.mutable_metadata())["current_epoch"] = absl::StrCat(*info.current_epoch);
  }
  out->add_details()->PackFrom(error);
  if (info.retry_after) {
    google::rpc::RetryInfo retry;
    const int64_t us = absl::ToInt64Microseconds(*info.retry_after);
    retry.mutable_retry_delay()->set_seconds(us / 1000000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(us % 1000000) * 1000);
    out->add_details()->PackFrom(retry);
  }
  if (!info.field.empty()) {
    google::rpc::BadRequest bad;
    google::rpc::BadRequest::FieldViolation* violation = bad.add_field_violations();
    violation->set_field(info.field);
    violation->set_description(message);
    out->add_details()->PackFrom(bad);
  }
}

ErrorInfo ReadDetails(const google::rpc::Status& details) {
  ErrorInfo info;
  for (const google::protobuf::Any& any : details.details()) {
    if (google::rpc::ErrorInfo error; any.UnpackTo(&error) && error.domain() == kDomain) {
      info.reason = ReasonFromName(error.reason()).value_or(Reason::kNone);
      const auto it = error.metadata().find("current_epoch");
      uint64_t epoch = 0;
      if (it != error.metadata().end() && absl::SimpleAtoi(it->second, &epoch)) {
        info.current_epoch = epoch;
      }
    } else if (google::rpc::RetryInfo retry; any.UnpackTo(&retry)) {
      info.retry_after = absl::Seconds(retry.retry_delay().seconds()) +
                         absl::Nanoseconds(retry.retry_delay().nanos());
    } else if (google::rpc::BadRequest bad; any.UnpackTo(&bad) && bad.field_violations_size() > 0) {
      info.field = bad.field_violations(0).field();
    }
  }
  return info;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  ErrorInfo info = InfoOf(status);
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const std::string message(status.message());
  if (info.reason == Reason::kNone) {
    if (status.code() == absl::StatusCode::kCancelled) info.reason = Reason::kCancelled;
    if (status.code() == absl::StatusCode::kDeadlineExceeded) info.reason = Reason::kDeadline;
    if (status.code() == absl::StatusCode::kInternal) info.reason = Reason::kInternal;
    if (status.code() == absl::StatusCode::kInvalidArgument) info.reason = Reason::kInvalidField;
  }
  if (info.reason == Reason::kNone) return {code, message};
  google::rpc::Status details;
  details.set_code(static_cast<int>(code));
  details.set_message(message);
  FillDetails(info, message, &details);
  return {code, message, details.SerializeAsString()};
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    const ErrorInfo info = ReadDetails(details);
    if (info.reason != Reason::kNone) {
      absl::Status rich = MakeError(info, status.error_message());
      if (rich.code() == code) return rich;
    }
  }
  return absl::Status(code, status.error_message());
}

absl::Duration RemainingTime(const grpc::ServerContextBase& context, absl::Duration margin,
                             absl::Duration cap) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return cap;
  const absl::Duration left = absl::FromChrono(deadline - std::chrono::system_clock::now());
  return std::clamp(left - margin, absl::ZeroDuration(), cap);
}

void SetDeadline(grpc::ClientContext& context, absl::Duration from_now) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(from_now));
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, int max_message_bytes) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 15000);
  // Despite its name: how long one attempt to connect may take. A busy machine, or a long way,
  // needs more than a backoff does; who is refused tries again after the backoff all the same.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  args.SetMaxReceiveMessageSize(max_message_bytes);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), args);
}

}  // namespace loopserve::common
