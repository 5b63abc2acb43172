#include "clients/cli/bench_report.h"

#include <gmock/gmock.h>

#include "common/error.h"

namespace loopserve::clients {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

LoadTurn MakeTurn(int turn, double ttft_ms, const std::string& worker, uint64_t restored) {
  LoadTurn done;
  done.turn = turn;
  done.worker_before = turn == 0 ? "" : "w1";
  done.outcome.started.set_worker_id(worker);
  done.outcome.ttft_ms = ttft_ms;
  done.outcome.total_ms = ttft_ms + 100;
  types::v1::Usage* usage = done.outcome.done.mutable_usage();
  usage->set_prompt_tokens(100);
  usage->set_computed_tokens(100 - restored);
  usage->set_restored_host_tokens(restored);
  usage->set_completion_tokens(11);
  return done;
}

LoadResult Example() {
  LoadResult result;
  result.duration_s = 2;
  result.turns = {MakeTurn(0, 400, "w1", 0), MakeTurn(1, 50, "w1", 90), MakeTurn(2, 70, "w2", 90)};
  LoadTurn lost;
  lost.status = common::MakeError(common::Reason::kQueueFull, "full");
  result.turns.push_back(lost);
  return result;
}

TEST(BenchReportTest, Quantiles) {
  const Summary summary = Summarize({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(summary.mean, 2.5);
  EXPECT_DOUBLE_EQ(summary.median, 2.5);
  EXPECT_NEAR(summary.p99, 3.97, 1e-9);
  EXPECT_EQ(Summarize({}).count, 0u);
}

TEST(BenchReportTest, CountsAndKeys) {
  const nlohmann::json report = LoadJson({}, Example());
  EXPECT_EQ(report["completed"], 3);
  EXPECT_EQ(report["lost_turns"], 1);
  EXPECT_EQ(report["errors"]["QUEUE_FULL"], 1);
  EXPECT_EQ(report["accounting_errors"], 0);
  EXPECT_EQ(report["tokens_by_source"]["host"], 180);
  EXPECT_EQ(report["tokens_by_source"]["computed"], 120);
  EXPECT_DOUBLE_EQ(report["cached_token_ratio"], 0.6);
  EXPECT_DOUBLE_EQ(report["session_retain_ratio"], 0.5);
  EXPECT_DOUBLE_EQ(report["request_throughput"], 1.5);
  EXPECT_DOUBLE_EQ(report["first_turn_ttft_ms"]["median"], 400);
  EXPECT_DOUBLE_EQ(report["returning_turn_ttft_ms"]["median"], 60);
  EXPECT_DOUBLE_EQ(report["returning_turn_ttft_ms_by_source"]["host"]["mean"], 60);
  EXPECT_DOUBLE_EQ(report["mean_tpot_ms"], 10);
  for (const char* name : {"ttft", "tpot", "itl", "e2el"}) {
    for (const char* kind : {"mean", "median", "p99"}) {
      EXPECT_TRUE(report.contains(std::string(kind) + "_" + name + "_ms"));
    }
  }
}

TEST(BenchReportTest, ThresholdsAreHeldAgainstTheReport) {
  const nlohmann::json report = LoadJson({}, Example());
  LoadThresholds thresholds;
  EXPECT_TRUE(MissedThresholds(thresholds, report).empty());
  thresholds.first_ttft_ms = 400;
  thresholds.returning_ttft_ms = 59;
  thresholds.retain_ratio = 0.9;
  thresholds.cached_ratio = 0.6;
  EXPECT_THAT(MissedThresholds(thresholds, report),
              ElementsAre(HasSubstr("returning-turn TTFT"), HasSubstr("retain ratio")));
}

TEST(BenchReportTest, AnEmptyRunIsReportedToo) {
  const nlohmann::json report = LoadJson({}, {});
  EXPECT_EQ(report["completed"], 0);
  EXPECT_THAT(LoadTable(report), HasSubstr("0 turns"));
  EXPECT_THAT(LoadTable(LoadJson({}, Example())), HasSubstr("mostly host (2)"));
}

}  // namespace
}  // namespace loopserve::clients
