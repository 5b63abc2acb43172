#include "clients/cli/report.h"

#include <gmock/gmock.h>

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TurnOutcome Returning() {
  TurnOutcome outcome;
  outcome.started.set_worker_id("w2");
  types::v1::Usage* usage = outcome.done.mutable_usage();
  usage->set_prompt_tokens(3412);
  usage->set_computed_tokens(24);
  usage->set_restored_host_tokens(3000);
  usage->set_restored_remote_tokens(388);
  outcome.done.mutable_timings()->set_tokens_per_second(41.26);
  outcome.ttft_ms = 61.7;
  return outcome;
}

TEST(ReportTest, ATurnIsOneLine) {
  EXPECT_EQ(TurnLine(Returning()),
            "3,412 prompt tokens: 24 computed, restored 3,000 from host + 388 from remote; first "
            "token after 62 ms; 41.3 tokens/s; worker w2");
  TurnOutcome damaged = Returning();
  damaged.done.mutable_usage()->set_recompute_reason("damaged");
  EXPECT_THAT(TurnLine(damaged), HasSubstr("(recomputed: damaged)"));
}

TEST(ReportTest, SumsAreChecked) {
  TurnOutcome outcome = Returning();
  EXPECT_EQ(RestoredTokens(outcome.done.usage()), 3388u);
  EXPECT_TRUE(AddsUp(outcome.done.usage()));
  outcome.done.mutable_usage()->set_computed_tokens(25);
  EXPECT_FALSE(AddsUp(outcome.done.usage()));
}

TEST(ReportTest, JsonNamesEveryPlace) {
  const nlohmann::json turn = TurnJson(Returning());
  EXPECT_EQ(turn["restored_tokens"],
            nlohmann::json({{"device", 0}, {"host", 3000}, {"disk", 0}, {"remote", 388}}));
  EXPECT_EQ(turn["worker"], "w2");
}

TEST(ReportTest, SessionsTellTimesOnlyWhenKnown) {
  session::v1::Session session;
  session.set_id("s");
  session.set_state(session::v1::SESSION_STATE_PARKED);
  EXPECT_EQ(SessionJson(session)["state"], "parked");
  EXPECT_FALSE(SessionJson(session).contains("ttl_s"));
  session.mutable_ttl()->set_seconds(60);
  session.mutable_use_time()->set_seconds(0);
  EXPECT_EQ(SessionJson(session)["ttl_s"], 60);
  EXPECT_EQ(SessionJson(session)["used"], "1970-01-01T00:00:00Z");
}

TEST(ReportTest, Numbers) {
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(3ull << 40), "3.0 TiB");
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(PlaceName(types::v1::PLACE_REMOTE), "remote");
  EXPECT_EQ(FinishReasonName(types::v1::FINISH_REASON_LENGTH), "length");
  EXPECT_EQ(WorkerStateName(admin::v1::WORKER_STATE_DOWN), "down");
}

}  // namespace
}  // namespace loopserve::clients
