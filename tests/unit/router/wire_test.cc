#include "router/wire.h"

#include <gtest/gtest.h>

#include "common/error.h"
#include "loopserve/chat/v1/chat.pb.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Reason;
using testing::ReasonIs;

grpc::ByteBuffer Bytes(const std::string& text) {
  const grpc::Slice slice(text);
  return grpc::ByteBuffer(&slice, 1);
}

TEST(DecodeTest, ReadsWhatEncodeWrote) {
  chat::v1::TurnRequest request;
  request.set_session_id("s");
  request.add_messages()->set_content("grüß dich 日本");
  (*request.mutable_sampling()->mutable_logit_bias())[7] = -1.5f;
  chat::v1::TurnRequest back;
  ASSERT_OK(Decode(Encode(request), 1 << 20, back));
  EXPECT_EQ(back.SerializeAsString(), request.SerializeAsString());
}

TEST(DecodeTest, JoinsSlices) {
  chat::v1::TurnRequest request;
  request.set_session_id("a session id that is cut in two");
  const std::string flat = request.SerializeAsString();
  const grpc::Slice slices[] = {grpc::Slice(flat.substr(0, 9)), grpc::Slice(flat.substr(9))};
  chat::v1::TurnRequest back;
  ASSERT_OK(Decode(grpc::ByteBuffer(slices, 2), 1 << 20, back));
  EXPECT_EQ(back.session_id(), request.session_id());
}

TEST(DecodeTest, HoldsTheLimitExactly) {
  chat::v1::TokenizeRequest request;
  request.set_text(std::string(100, 'x'));
  const grpc::ByteBuffer bytes = Encode(request);
  chat::v1::TokenizeRequest back;
  EXPECT_OK(Decode(bytes, bytes.Length(), back));
  EXPECT_THAT(Decode(bytes, bytes.Length() - 1, back), ReasonIs(Reason::kMessageTooLarge));
}

TEST(DecodeTest, NamesTheStringThatIsNotUtf8) {
  const std::string role_bad(
      "\x0a\x03"
      "abc"
      "\x12\x06\x0a\x01\xff\x12\x01x",
      13);
  chat::v1::TurnRequest request;
  const absl::Status status = Decode(Bytes(role_bad), 1 << 20, request);
  EXPECT_THAT(status, ReasonIs(Reason::kInvalidField));
  EXPECT_EQ(common::InfoOf(status).field, "messages[0].role");
}

TEST(DecodeTest, BytesFieldsAndUnknownFieldsMayHoldAnything) {
  chat::v1::DetokenizeResponse response;
  response.set_text("\xff\xfe");
  chat::v1::DetokenizeResponse back;
  EXPECT_OK(Decode(Encode(response), 1 << 20, back));
  EXPECT_EQ(back.text(), "\xff\xfe");
  chat::v1::ListModelsRequest empty;
  EXPECT_OK(Decode(Bytes("\x0a\x01\xff"), 1 << 20, empty));
}

TEST(DecodeTest, NoBytesOfAnyLengthCrashIt) {
  chat::v1::TurnRequest request;
  request.set_session_id("s");
  request.add_messages()->set_content("hello");
  request.mutable_sampling()->add_stop("stop");
  const std::string good = request.SerializeAsString();
  for (size_t length = 0; length < good.size(); ++length) {
    chat::v1::TurnRequest back;
    Decode(Bytes(good.substr(0, length)), 1 << 20, back).IgnoreError();
    for (int flip = 0; flip < 8; ++flip) {
      std::string damaged = good;
      damaged[length] = static_cast<char>(damaged[length] ^ (1 << flip));
      Decode(Bytes(damaged), 1 << 20, back).IgnoreError();
    }
  }
  chat::v1::TurnRequest back;
  EXPECT_THAT(Decode(Bytes("\x12\x7f\x0a"), 1 << 20, back), ReasonIs(Reason::kInvalidField));
  EXPECT_THAT(Decode(Bytes("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), 1 << 20, back),
              ReasonIs(Reason::kInvalidField));
}

TEST(HeaderValueTest, IsAlwaysVisibleAscii) {
  EXPECT_EQ(HeaderValue("s-1.a_B~!"), "s-1.a_B~!");
  EXPECT_EQ(HeaderValue("a b%\r\n\xc3\xa4"), "a%20b%25%0D%0A%C3%A4");
  EXPECT_EQ(HeaderValue(""), "");
}

TEST(DrainingErrorTest, MayBeRetried) {
  EXPECT_THAT(DrainingError(), ReasonIs(Reason::kDraining));
  EXPECT_TRUE(common::InfoOf(DrainingError()).retry_after.has_value());
}

}  // namespace
}  // namespace loopserve::router
