// The error table: what a client sees of each reason, and that the details survive the wire.
#include "common/rpc.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/support/status_matchers.h"

namespace loopserve::common {
namespace {

struct Row {
  Reason reason;
  grpc::StatusCode code;
  const char* name;
  bool retry = false;      // carries RetryInfo
  const char* field = "";  // carries BadRequest
};

// Conventions of the public services: condition by condition.
const Row kRows[] = {
    {Reason::kInvalidField, grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD", false,
     "sampling.top_p"},
    {Reason::kContextLengthExceeded, grpc::StatusCode::INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED"},
    {Reason::kMessageTooLarge, grpc::StatusCode::RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"},
    {Reason::kInvalidApiKey, grpc::StatusCode::UNAUTHENTICATED, "INVALID_API_KEY"},
    {Reason::kForbidden, grpc::StatusCode::PERMISSION_DENIED, "FORBIDDEN"},
    {Reason::kModelNotFound, grpc::StatusCode::NOT_FOUND, "MODEL_NOT_FOUND"},
    {Reason::kSessionNotFound, grpc::StatusCode::NOT_FOUND, "SESSION_NOT_FOUND"},
    {Reason::kSessionExists, grpc::StatusCode::ALREADY_EXISTS, "SESSION_EXISTS"},
    {Reason::kTurnMismatch, grpc::StatusCode::FAILED_PRECONDITION, "TURN_MISMATCH"},
    {Reason::kStaleEpoch, grpc::StatusCode::FAILED_PRECONDITION, "STALE_EPOCH"},
    {Reason::kSessionBusy, grpc::StatusCode::ABORTED, "SESSION_BUSY", true},
    {Reason::kQueueFull, grpc::StatusCode::RESOURCE_EXHAUSTED, "QUEUE_FULL", true},
    {Reason::kRateLimited, grpc::StatusCode::RESOURCE_EXHAUSTED, "RATE_LIMITED", true},
    {Reason::kDraining, grpc::StatusCode::UNAVAILABLE, "DRAINING", true},
    {Reason::kLoading, grpc::StatusCode::UNAVAILABLE, "LOADING", true},
    {Reason::kNoWorker, grpc::StatusCode::UNAVAILABLE, "NO_WORKER", true},
    {Reason::kWorkerLost, grpc::StatusCode::UNAVAILABLE, "WORKER_LOST"},
    {Reason::kDeadline, grpc::StatusCode::DEADLINE_EXCEEDED, "DEADLINE"},
    {Reason::kQueueTimeout, grpc::StatusCode::DEADLINE_EXCEEDED, "QUEUE_TIMEOUT"},
    {Reason::kCancelled, grpc::StatusCode::CANCELLED, "CANCELLED"},
    {Reason::kUnsupported, grpc::StatusCode::UNIMPLEMENTED, "UNSUPPORTED"},
    {Reason::kKvCorrupt, grpc::StatusCode::DATA_LOSS, "KV_CORRUPT"},
    {Reason::kInternal, grpc::StatusCode::INTERNAL, "INTERNAL"},
};

class ErrorTableTest : public ::testing::TestWithParam<Row> {
 protected:
  static absl::Status Make(const Row& row) {
    ErrorInfo info{.reason = row.reason, .field = row.field};
    if (row.retry) info.retry_after = absl::Milliseconds(1250);
    if (row.reason == Reason::kStaleEpoch) info.current_epoch = 41;
    return MakeError(info, "what happened");
  }
};

TEST_P(ErrorTableTest, TravelsAsCodeAndDetails) {
  const Row& row = GetParam();
  const grpc::Status sent = ToGrpc(Make(row));
  EXPECT_EQ(sent.error_code(), row.code);
  EXPECT_EQ(sent.error_message(), "what happened");

  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(sent.error_details()));
  EXPECT_EQ(details.code(), static_cast<int>(row.code));
  google::rpc::ErrorInfo error;
  google::rpc::RetryInfo retry;
  google::rpc::BadRequest bad;
  bool has_retry = false;
  for (const auto& any : details.details()) {
    any.UnpackTo(&error);
    has_retry |= any.UnpackTo(&retry);
    any.UnpackTo(&bad);
  }
  EXPECT_EQ(error.reason(), row.name);
  EXPECT_EQ(error.domain(), "loopserve");
  EXPECT_EQ(has_retry, row.retry);
  if (row.retry) {
    EXPECT_EQ(retry.retry_delay().seconds(), 1);
    EXPECT_EQ(retry.retry_delay().nanos(), 250000000);
  }
  ASSERT_EQ(bad.field_violations_size(), *row.field == '\0' ? 0 : 1);
  if (*row.field != '\0') {
    EXPECT_EQ(bad.field_violations(0).field(), row.field);
  }
}

TEST_P(ErrorTableTest, ComesBackAsItWas) {
  const Row& row = GetParam();
  const absl::Status back = FromGrpc(ToGrpc(Make(row)));
  EXPECT_EQ(back, Make(row));
  EXPECT_EQ(InfoOf(back).reason, row.reason);
  EXPECT_EQ(InfoOf(back).retry_after.has_value(), row.retry);
  EXPECT_EQ(InfoOf(back).current_epoch.has_value(), row.reason == Reason::kStaleEpoch);
}

INSTANTIATE_TEST_SUITE_P(All, ErrorTableTest, ::testing::ValuesIn(kRows),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ErrorTableTest, HasARowForEveryReason) {
  EXPECT_EQ(std::size(kRows), static_cast<size_t>(Reason::kInternal));
}

TEST(ToGrpcTest, OkIsOkAndPlainCodesGetTheirObviousReason) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_OK(FromGrpc(grpc::Status::OK));
  const std::pair<absl::Status, Reason> plain[] = {
      {absl::CancelledError("x"), Reason::kCancelled},
      {absl::DeadlineExceededError("x"), Reason::kDeadline},
      {absl::InternalError("x"), Reason::kInternal},
      {absl::InvalidArgumentError("x"), Reason::kInvalidField},
      {absl::UnavailableError("x"), Reason::kNone},
  };
  for (const auto& [status, reason] : plain) {
    const absl::Status back = FromGrpc(ToGrpc(status));
    EXPECT_EQ(InfoOf(back).reason, reason) << status;
    EXPECT_EQ(back.code(), status.code());
    EXPECT_EQ(back.message(), status.message());
  }
}

TEST(FromGrpcTest, DoesNotTrustForeignDetails) {
  const grpc::Status garbage(grpc::StatusCode::NOT_FOUND, "gone", "\xff\xff not a status");
  EXPECT_EQ(FromGrpc(garbage), absl::NotFoundError("gone"));
  google::rpc::Status details;
  google::rpc::ErrorInfo error;
  error.set_reason("SESSION_BUSY");
  error.set_domain("elsewhere");
  details.add_details()->PackFrom(error);
  EXPECT_EQ(InfoOf(FromGrpc({grpc::StatusCode::ABORTED, "x", details.SerializeAsString()})).reason,
            Reason::kNone);
  error.set_domain("loopserve");
  details.mutable_details(0)->PackFrom(error);
  // A code that is not the reason's: the code counts.
  EXPECT_EQ(FromGrpc({grpc::StatusCode::NOT_FOUND, "x", details.SerializeAsString()}),
            absl::NotFoundError("x"));
}

// The kernel completes the connection, but nobody answers.
TEST(MakeChannelTest, APeerMayTakeItsTimeToAnswer) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* raw = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(listener, raw, size), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  ASSERT_EQ(getsockname(listener, raw, &size), 0);
  const auto channel = MakeChannel(absl::StrCat("127.0.0.1:", ntohs(address.sin_port)));
  const auto in = [](absl::Duration time) { return absl::ToChronoTime(absl::Now() + time); };
  ASSERT_EQ(channel->GetState(/*try_to_connect=*/true), GRPC_CHANNEL_IDLE);
  ASSERT_TRUE(channel->WaitForStateChange(GRPC_CHANNEL_IDLE, in(absl::Minutes(1))));
  EXPECT_FALSE(channel->WaitForStateChange(GRPC_CHANNEL_CONNECTING, in(absl::Milliseconds(500))));
  close(listener);
}

}  // namespace
}  // namespace loopserve::common
