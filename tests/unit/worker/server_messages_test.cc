#include "worker/server_messages.h"

#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;
using testing::ReasonIs;

TEST(ServerMessages, UnsetIsNotZero) {
  ASSERT_OK_AND_ASSIGN(const SamplingParams defaults, SamplingFromProto({}));
  EXPECT_EQ(defaults.max_tokens, std::nullopt);
  EXPECT_EQ(defaults.top_p, 1);
  EXPECT_EQ(defaults.repetition_penalty, 1);
  EXPECT_EQ(defaults.seed, std::nullopt);
  EXPECT_EQ(defaults.logprobs, std::nullopt);

  types::v1::SamplingParams zeros;
  zeros.set_max_tokens(0);
  zeros.set_top_p(0);
  zeros.set_seed(0);
  zeros.set_logprobs(0);
  ASSERT_OK_AND_ASSIGN(const SamplingParams set, SamplingFromProto(zeros));
  EXPECT_EQ(set.max_tokens, 0u);
  EXPECT_EQ(set.top_p, 0);
  EXPECT_EQ(set.seed, 0u);
  EXPECT_EQ(set.logprobs, 0u);
}

TEST(ServerMessages, TokenIdsThatDoNotFitAreRefusedByName) {
  types::v1::SamplingParams sampling;
  (*sampling.mutable_logit_bias())[0x80000000u] = 1;
  EXPECT_EQ(common::InfoOf(SamplingFromProto(sampling).status()).field, "sampling.logit_bias");
  sampling.Clear();
  sampling.add_stop_token_ids(0xffffffffu);
  EXPECT_EQ(common::InfoOf(SamplingFromProto(sampling).status()).field, "sampling.stop_token_ids");
}

TEST(ServerMessages, InvalidUtf8NamesTheMessage) {
  chat::v1::TurnRequest turn;
  turn.add_messages()->set_content("fine");
  turn.add_messages()->set_content("broken \xff");
  const auto messages = MessagesFromProto(turn);
  EXPECT_THAT(messages, ReasonIs(common::Reason::kInvalidField));
  EXPECT_EQ(common::InfoOf(messages.status()).field, "messages[1].content");
}

google::protobuf::Duration Span(int64_t seconds, int32_t nanos) {
  google::protobuf::Duration span;
  span.set_seconds(seconds);
  span.set_nanos(nanos);
  return span;
}

TEST(ServerMessages, ATtlIsRoundedUpToSeconds) {
  EXPECT_EQ(*TtlFromProto({}), 0);
  EXPECT_EQ(*TtlFromProto(Span(0, 1)), 1);
  EXPECT_EQ(*TtlFromProto(Span(60, 0)), 60);
  EXPECT_EQ(*TtlFromProto(Span(60, 999'999'999)), 61);
}

TEST(ServerMessages, ATtlThatIsNoneIsRefused) {
  for (const auto& span : {Span(-1, 0), Span(0, -1), Span(INT64_MAX, 0), Span(INT64_MIN, 0),
                           Span(1, 1'000'000'000), Span(315'576'000'000, 0)}) {
    EXPECT_EQ(common::InfoOf(TtlFromProto(span).status()).field, "ttl");
  }
}

TEST(ServerMessages, UsageAddsUp) {
  TurnResult result;
  result.prompt.computed = 5;
  result.prompt.restored = {1, 2, 3, 4};
  result.prompt.recompute_reason = "damaged";
  result.completion_tokens = 9;
  types::v1::Usage usage;
  UsageToProto(result, &usage);
  EXPECT_EQ(usage.prompt_tokens(), 15u);
  EXPECT_EQ(usage.prompt_tokens(), usage.computed_tokens() + usage.restored_device_tokens() +
                                       usage.restored_host_tokens() + usage.restored_disk_tokens() +
                                       usage.restored_remote_tokens());
  EXPECT_EQ(usage.restored_remote_tokens(), 4u);
  EXPECT_EQ(usage.recompute_reason(), "damaged");
}

TEST(ServerMessages, SessionWithoutAWorkerNamesNone) {
  SessionInfo info;
  info.ref = {common::SessionId("s"), common::Epoch(3)};
  info.used = absl::FromUnixMillis(1500);
  info.created = absl::InfinitePast();
  session::v1::Session out;
  SessionToProto(info, "m", "w1", &out);
  EXPECT_EQ(out.worker_id(), "");
  EXPECT_FALSE(out.has_create_time());
  EXPECT_FALSE(out.has_ttl());
  EXPECT_EQ(out.use_time().seconds(), 1);
  EXPECT_EQ(out.use_time().nanos(), 500000000);
  info.resident = true;
  info.ttl_seconds = 60;
  SessionToProto(info, "m", "w1", &out);
  EXPECT_EQ(out.worker_id(), "w1");
  EXPECT_EQ(out.ttl().seconds(), 60);
}

}  // namespace
}  // namespace loopserve::worker
