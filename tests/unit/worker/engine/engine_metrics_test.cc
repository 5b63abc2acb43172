#include "worker/engine/engine_metrics.h"

#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

TEST(EngineMetrics, AllSeriesExistFromTheStart) {
  auto metrics = common::Metrics::Create("worker");
  EngineMetrics engine(*metrics, "tiny", 512, 2, {});
  const std::string text = metrics->Render();
  for (const char* series :
       {"loopserve_requests_finished_total{model=\"tiny\",reason=\"abort\"} 0",
        "loopserve_prompt_tokens_by_source_total{bits=\"8\",model=\"tiny\",source=\"remote\"} 0",
        "loopserve_recomputed_tokens_total{model=\"tiny\",reason=\"cheaper\"} 0",
        "loopserve_engine_requests_waiting{model=\"tiny\",reason=\"restore\"} 0",
        "loopserve_engine_preemptions_total{model=\"tiny\"} 0",
        "loopserve_engine_spec_draft_tokens_total{model=\"tiny\"} 0",
        "loopserve_engine_spec_accepted_tokens_total{model=\"tiny\"} 0",
        "loopserve_tp_size{model=\"tiny\"} 2", "loopserve_tp_rank_up{model=\"tiny\",rank=\"1\"} 1",
        "loopserve_kv_hit_tokens_total{model=\"tiny\",tier=\"disk\"} 0",
        "loopserve_time_to_first_token_seconds_count{model=\"tiny\",turn=\"returning\"} 0",
        "loopserve_engine_step_duration_seconds_count{model=\"tiny\",phase=\"mixed\"} 0"}) {
    EXPECT_NE(text.find(series), std::string::npos) << series;
  }
}

// Whatever is exported is described.
TEST(EngineMetrics, NamesAreThoseOfTheDocumentation) {
  std::ifstream file("docs/metrics.md");
  std::stringstream docs;
  docs << file.rdbuf();
  ASSERT_FALSE(docs.str().empty());
  auto metrics = common::Metrics::Create("worker");
  EngineMetrics engine(*metrics, "tiny", 512, 2, {});
  const std::string text = metrics->Render();
  const std::regex type_line("# TYPE (\\S+) ");
  for (std::sregex_iterator it(text.begin(), text.end(), type_line), end; it != end; ++it) {
    EXPECT_NE(docs.str().find("`" + (*it)[1].str() + "`"), std::string::npos) << (*it)[1];
  }
}

TEST(EngineMetrics, AFirstTokenCountsItsPromptBySource) {
  auto metrics = common::Metrics::Create("worker");
  EngineMetrics engine(*metrics, "tiny", 512, 1, {.restored = 8});
  Sequence sequence;
  sequence.turn = 1;
  sequence.arrival = absl::UnixEpoch();
  sequence.first_token = absl::UnixEpoch() + absl::Seconds(1);
  sequence.prompt.computed = 3;
  sequence.prompt.from(kvstore::Place::kDisk) = 40;
  sequence.prompt.recomputed = 2;
  sequence.prompt.recompute_reason = "evicted";
  engine.FirstToken(sequence, true);
  const std::string text = metrics->Render();
  for (const char* series :
       {"loopserve_prompt_tokens_total{model=\"tiny\"} 43",
        "loopserve_prompt_tokens_by_source_total{bits=\"16\",model=\"tiny\",source=\"computed\"} 3",
        "loopserve_prompt_tokens_by_source_total{bits=\"8\",model=\"tiny\",source=\"disk\"} 40",
        "loopserve_recomputed_tokens_total{model=\"tiny\",reason=\"evicted\"} 2",
        "loopserve_kv_lookup_tokens_total{model=\"tiny\"} 43",
        "loopserve_kv_hit_tokens_total{model=\"tiny\",tier=\"disk\"} 40",
        "loopserve_time_to_first_token_seconds_sum{model=\"tiny\",turn=\"returning\"} 1",
        "loopserve_generation_tokens_total{model=\"tiny\"} 1"}) {
    EXPECT_NE(text.find(series), std::string::npos) << series;
  }
}

TEST(EngineMetrics, StepsByPhase) {
  auto metrics = common::Metrics::Create("worker");
  EngineMetrics engine(*metrics, "tiny", 512, 1, {});
  engine.Step(true, false, 100, absl::Seconds(1), absl::ZeroDuration());
  engine.Step(false, true, 4, absl::Seconds(1), absl::ZeroDuration());
  engine.Step(false, true, 4, absl::Seconds(1), absl::ZeroDuration());
  engine.Step(true, true, 50, absl::Seconds(1), absl::ZeroDuration());
  const std::string text = metrics->Render();
  auto has = [&](const std::string& line) { return text.find(line) != std::string::npos; };
  const std::string name = "loopserve_engine_step_duration_seconds_count{model=\"tiny\",phase=";
  EXPECT_TRUE(has(name + "\"prefill\"} 1"));
  EXPECT_TRUE(has(name + "\"decode\"} 2"));
  EXPECT_TRUE(has(name + "\"mixed\"} 1"));
  EXPECT_TRUE(has("loopserve_engine_step_tokens_sum{model=\"tiny\"} 158"));
}

}  // namespace
}  // namespace loopserve::worker
