// Micro benchmarks of everything in a step that is not the model: the engine with a model that
// costs nothing, the sampler, the hand-over to the ranks.
//
//   step_bench --benchmark_filter=Engine
//
// BM_EngineStep counts the microseconds that one step of a decoding batch takes beside the model.
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "kvstore/kv_metrics.h"
#include "kvstore/session_log.h"
#include "worker/backend/row_sampler.h"
#include "worker/engine/engine.h"
#include "worker/engine/rank_group.h"
#include "worker/engine/sampler.h"
#include "worker/session/kv_cache.h"
#include "worker/session/session_cache.h"

namespace loopserve::worker {
namespace {

constexpr int32_t kVocab = 49152;
constexpr int32_t kContext = 8192;

std::vector<float> Logits(uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Says the same logits whatever it is asked, at once.
class NoModel final : public Model {
 public:
  explicit NoModel(int64_t max_rows) : logits_(Logits(1)) {
    config_.fingerprint = "none";
    config_.vocab = kVocab;
    config_.context_tokens = kContext;
    config_.q_heads = config_.kv_heads = 1;
    const std::vector<float> row = logits_;
    for (int64_t i = 1; i < max_rows; ++i) logits_.insert(logits_.end(), row.begin(), row.end());
  }
  const ModelConfig& config() const override { return config_; }
  size_t resident_bytes() const override { return 0; }
  absl::StatusOr<StepOutput> Forward(const StepBatch& batch, const kvstore::KvArena&,
                                     Communicator&) override {
    choices_.resize(batch.logit_rows.size());
    const TensorView logits{logits_.data(), static_cast<int64_t>(choices_.size()), kVocab, kVocab};
    RETURN_IF_ERROR(sampler_.Sample(logits, batch.sampling, choices_));
    return StepOutput{.choices = choices_};
  }

 private:
  ModelConfig config_;
  std::vector<float> logits_;
  std::vector<RowChoice> choices_;
  RowSampler sampler_;
};

std::unique_ptr<RankGroup> Ranks(int64_t max_rows) {
  std::vector<RankGroup::Rank> ranks;
  auto backend = *CreateBackend({.name = "reference", .threads = 1});
  auto pool = *kvstore::KvBlockPool::Create(
      {.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 32}, 4096,
      {{.memory = &backend->memory(), .first_kv_head = 0, .kv_heads = 1}});
  ranks.push_back({std::move(backend), std::make_unique<NoModel>(max_rows)});
  return *RankGroup::Assemble(std::move(ranks), std::move(pool), absl::Seconds(30),
                              common::Logger::Null());
}

class Sink final : public TokenSink {
 public:
  void OnStarted(const TurnStarted&) override {}
  bool OnToken(const StepToken&) override { return false; }
  void OnReplay(absl::string_view, std::span<const common::TokenId>) override {}
  std::string AnswerText() override { return ""; }
  void OnDone(const absl::StatusOr<TurnResult>&) override { done_.Notify(); }
  void Wait() { done_.WaitForNotification(); }

 private:
  absl::Notification done_;
};

struct Worker {
  explicit Worker(int64_t batch, SpeculationOptions speculation = {}) : ranks(Ranks(batch + 32)) {
    EngineOptions options;
    options.model_name = "none";
    options.max_batch = batch;
    options.max_step_tokens = 512;
    options.max_step_time = absl::Milliseconds(50);
    options.speculation = speculation;
    options.max_logit_rows = batch + 32;
    engine =
        *Engine::Create(options, *ranks, kv, sessions, clock, *metrics, common::Logger::Null());
  }
  std::shared_ptr<Sink> Start(int64_t prompt, uint32_t tokens) {
    TurnSpec spec;
    spec.render = [prompt](const kvstore::SessionRecord&) {
      std::vector<common::TokenId> text;
      for (int64_t i = 0; i < prompt; ++i) {
        text.push_back(static_cast<common::TokenId>(i * 7919 % kVocab));
      }
      return text;
    };
    spec.sampling.max_tokens = tokens;
    spec.sampling.ignore_eos = true;
    spec.bypass_cache = true;
    auto sink = std::make_shared<Sink>();
    engine->Submit(std::move(spec), sink).IgnoreError();
    return sink;
  }

  std::unique_ptr<RankGroup> ranks;
  std::unique_ptr<common::Metrics> metrics = common::Metrics::Create("bench");
  common::RealClock clock;
  kvstore::KvMetrics kv_metrics{*metrics};
  KvCache kv{{.model_fingerprint = "none"}, ranks->pool(), nullptr, kv_metrics};
  std::unique_ptr<kvstore::SessionLog> log = kvstore::CreateMemorySessionLog();
  SessionCache sessions{
      {.model = "none", .model_name = "none"}, *log, kv, clock, *metrics, common::Logger::Null()};
  std::unique_ptr<Engine> engine;
};

void BM_EngineStep(benchmark::State& state) {
  Worker worker(state.range(0));
  constexpr uint32_t kTokens = 2000;
  for (auto _ : state) {
    std::vector<std::shared_ptr<Sink>> sinks;
    for (int64_t i = 0; i < state.range(0); ++i) {
      sinks.push_back(worker.Start(state.range(1), kTokens));
    }
    for (const auto& sink : sinks) sink->Wait();
  }
  state.counters["us_per_step"] = benchmark::Counter(
      kTokens * 1e-6, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_EngineStep)
    ->ArgNames({"batch", "history"})
    ->Args({1, 16})
    ->Args({1, 3000})
    ->Args({8, 3000})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void BM_HandOver(benchmark::State& state) {
  const auto ranks = Ranks(1);
  auto plan = std::make_shared<StepPlan>();
  const kvstore::BlockHandle block = *ranks->pool().Allocate();
  plan->parts.push_back({.rows = 1, .kv_tokens = 1, .blocks = {block.id()}});
  plan->tokens = {0};
  plan->positions = {0};
  plan->logit_rows = {0};
  plan->sampling.rows.resize(1);
  for (auto _ : state) benchmark::DoNotOptimize(ranks->Run(plan).ok());
}
BENCHMARK(BM_HandOver)->UseRealTime();

void Sample(benchmark::State& state, const SamplingParams& params) {
  std::vector<float> logits = Logits(2);
  Sampler sampler(params, 7, {});
  RowSampler rows;
  RowChoice choice;
  SamplingPlan plan;
  uint64_t position = 0;
  for (auto _ : state) {
    plan.Clear();
    sampler.Plan(++position, {}, {}, plan);
    const absl::Status status =
        rows.Sample({logits.data(), 1, kVocab, kVocab}, plan.view(), {&choice, 1});
    benchmark::DoNotOptimize(status.ok());
    benchmark::DoNotOptimize(sampler.Read(choice).token);
  }
}
BENCHMARK_CAPTURE(Sample, greedy, SamplingParams{});
BENCHMARK_CAPTURE(Sample, temperature, SamplingParams{.temperature = 1});
BENCHMARK_CAPTURE(Sample, top_k_40, SamplingParams{.temperature = 1, .top_k = 40});
BENCHMARK_CAPTURE(Sample, top_p_95, SamplingParams{.temperature = 1, .top_p = 0.95f});
BENCHMARK_CAPTURE(Sample, min_p_05, SamplingParams{.temperature = 1, .min_p = 0.05f});
BENCHMARK_CAPTURE(Sample, logprobs_5, SamplingParams{.logprobs = 5});

}  // namespace
}  // namespace loopserve::worker

BENCHMARK_MAIN();
