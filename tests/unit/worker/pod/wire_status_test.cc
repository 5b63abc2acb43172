#include "worker/pod/wire_status.h"

#include <gtest/gtest.h>

namespace loopserve::worker {
namespace {

TEST(WireStatus, ComesBackAsItWas) {
  for (const absl::Status& status :
       {absl::OkStatus(), absl::UnavailableError("away"), absl::DataLossError("")}) {
    pod::v1::Status message;
    StatusToProto(status, &message);
    EXPECT_EQ(StatusFromProto(message), status);
  }
}

TEST(WireStatus, NothingIsOkAndACodeThatDoesNotExistIsAnError) {
  EXPECT_TRUE(StatusFromProto({}).ok());
  pod::v1::Status message;
  message.set_code(4000000000);
  message.set_text("what");
  EXPECT_EQ(StatusFromProto(message), absl::UnknownError("what"));
}

}  // namespace
}  // namespace loopserve::worker
