// Steps that several turns share, and steps that guess.
#include "worker/engine/engine.h"

#include <atomic>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "common/status_macros.h"
#include "tests/integration/engine_fixture.h"
#include "tests/support/manual_clock.h"
#include "worker/backend/row_sampler.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::Answer;
using ::loopserve::testing::CollectingSink;
using ::loopserve::testing::ComputedRows;
using ::loopserve::testing::EngineFixture;
using ::loopserve::testing::ExpectAddsUp;
using ::loopserve::testing::Joined;
using ::loopserve::testing::MetricOf;
using ::loopserve::testing::SpecOf;
using ::loopserve::testing::Text;
using ::loopserve::testing::Tokens;

// --- Guessing

// A text that repeats itself, so that there is something to guess from.
Tokens Refrain(uint32_t seed, size_t times = 4) {
  Tokens all;
  for (size_t i = 0; i < times; ++i) all = Joined({all, Text(7, seed)});
  return all;
}

EngineFixture::Options Guessing(EngineFixture::Options options = {}) {
  options.speculation = {.max_rows = 4, .adaptive = false};
  return options;
}

double Accepted(EngineFixture& worker) {
  return MetricOf(worker, "loopserve_engine_spec_accepted_tokens_total{model=\"tiny\"}");
}
double Drafted(EngineFixture& worker) {
  return MetricOf(worker, "loopserve_engine_spec_draft_tokens_total{model=\"tiny\"}");
}

TEST(Guessing, DoesNotChangeAToken) {
  double accepted = 0, drafted = 0;
  for (uint32_t seed = 0; seed < 6; ++seed) {
    EngineFixture plain({}), guessing(Guessing());
    EXPECT_EQ(guessing.Complete(Refrain(seed), 120).tokens,
              plain.Complete(Refrain(seed), 120).tokens);
    accepted += Accepted(guessing);
    drafted += Drafted(guessing);
    EXPECT_EQ(Drafted(plain), 0);
    EXPECT_EQ(MetricOf(guessing, "loopserve_generation_tokens_total{model=\"tiny\"}"), 120);
    EXPECT_LE(ComputedRows(guessing), ComputedRows(plain) + Drafted(guessing) - Accepted(guessing));
  }
  EXPECT_GT(accepted, 100) << "of " << drafted;
  EXPECT_GT(drafted, accepted) << "some are wrong";
}

TEST(Guessing, NeitherDoWhateverElseIsAskedFor) {
  const auto change = std::vector<std::function<void(SamplingParams&)>>{
      [](SamplingParams& s) { s.temperature = 0.7f, s.seed = 5; },
      [](SamplingParams& s) { s.temperature = 1, s.seed = 6, s.top_k = 2, s.top_p = 0.9f; },
      [](SamplingParams& s) { s.repetition_penalty = 1.2f; },
      [](SamplingParams& s) { s.presence_penalty = 0.5f, s.frequency_penalty = 0.1f; },
      [](SamplingParams& s) {
        s.logit_bias = {{17, 3.0f}, {40, -100.0f}};
      },
      [](SamplingParams& s) {
        s.stop_token_ids = {17, 40, 90}, s.min_tokens = 30;
      },
      [](SamplingParams& s) { s.logprobs = 3; }};
  for (size_t i = 0; i < change.size(); ++i) {
    const auto run = [&](EngineFixture& worker) {
      std::vector<float> logprobs;
      auto sink = std::make_shared<CollectingSink>();
      sink->on_token = [&](const StepToken& token) {
        logprobs.push_back(token.logprob);
        for (const TokenLogprob& other : token.top) logprobs.push_back(other.logprob);
        return false;
      };
      TurnSpec spec = SpecOf("", Refrain(2), 80);
      change[i](spec.sampling);
      const Answer answer = worker.Start(std::move(spec), nullptr, sink)->Wait();
      return std::tuple(answer.tokens, answer.result.finish_reason, logprobs);
    };
    EngineFixture plain({}), guessing(Guessing());
    EXPECT_EQ(run(guessing), run(plain)) << i;
    EXPECT_GT(Drafted(guessing), 0) << i;
  }
}

TEST(Guessing, NeitherInCompanyNorWithRanksNorPreempted) {
  std::vector<Tokens> expected;
  EngineFixture plain({.blocks = 200});
  for (uint32_t i = 0; i < 4; ++i) expected.push_back(plain.Complete(Refrain(i, 3), 60).tokens);
  for (const EngineFixture::Options& options :
       {EngineFixture::Options{.blocks = 200}, EngineFixture::Options{.tp = 2, .blocks = 200},
        EngineFixture::Options{.blocks = 16}, EngineFixture::Options{.backend = "cpu"}}) {
    EngineFixture worker(Guessing(options));
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (uint32_t i = 0; i < 4; ++i) sinks.push_back(worker.Start(SpecOf("", Refrain(i, 3), 60)));
    for (size_t i = 0; i < 4; ++i) {
      ExpectAddsUp(sinks[i]->Wait(), 21);
      if (options.backend != "cpu") {
        EXPECT_EQ(sinks[i]->Wait().tokens, expected[i]) << i << " of " << options.blocks;
      }
    }
    EXPECT_GT(Accepted(worker), 0);
    EXPECT_EQ(worker.available(), options.blocks);
  }
}

TEST(Guessing, EndsWhereTheSinkSaysSo) {
  EngineFixture plain({}), worker(Guessing());
  const Tokens expected = plain.Complete(Refrain(1), 40).tokens;
  for (size_t length = 1; length < 12; ++length) {
    auto sink = std::make_shared<CollectingSink>();
    size_t seen = 0;
    sink->on_token = [&](const StepToken&) { return ++seen == length; };
    const Answer answer = worker.Start(SpecOf("", Refrain(1), 40), nullptr, sink)->Wait();
    EXPECT_EQ(answer.tokens, Tokens(expected.begin(), expected.begin() + length));
    EXPECT_EQ(answer.result.finish_reason, FinishReason::kStop);
    EXPECT_EQ(worker.Complete(Refrain(1), static_cast<uint32_t>(length)).tokens, answer.tokens);
  }
}

// The bytes of the full blocks that the device keeps of a session.
std::vector<std::vector<std::byte>> BytesOf(EngineFixture& worker, const Tokens& tokens) {
  const DeviceMatch match =
      worker.kv->device().Match(worker.kv->Root(CacheNamespaceOf("", "")), tokens);
  std::vector<std::vector<std::byte>> blocks;
  for (const kvstore::BlockHandle& block : match.full) {
    blocks.emplace_back(worker.ranks->pool().shape().block_bytes());
    EXPECT_OK(worker.ranks->pool().ReadBlock(block.id(), blocks.back()));
  }
  return blocks;
}

TEST(Guessing, LeavesTheSameKvAndTheNextTurnGoesOnFromIt) {
  EngineFixture plain({}), worker(Guessing());
  for (int turn = 0; turn < 3; ++turn) {
    const Tokens prompt = Refrain(static_cast<uint32_t>(turn), 2);
    const Answer expected = plain.Turn("s", prompt, 50);
    const Answer answer = worker.Turn("s", prompt, 50);
    EXPECT_EQ(answer.tokens, expected.tokens);
    EXPECT_EQ(answer.result.prompt.computed, expected.result.prompt.computed);
    EXPECT_EQ(Restored(answer, kvstore::Place::kDevice),
              Restored(expected, kvstore::Place::kDevice));
    const Tokens log = worker.own_log.Get(common::SessionId("s"))->tokens;
    const auto bytes = BytesOf(worker, log);
    EXPECT_EQ(bytes.size(), (log.size() - 1) / 8);
    EXPECT_EQ(bytes, BytesOf(plain, log));
  }
  EXPECT_GT(Accepted(worker), 0);
}

TEST(Guessing, ACancelledTurnKeepsWhatWasGenerated) {
  EngineFixture plain({}), worker(Guessing());
  const Tokens expected = plain.Complete(Refrain(3), 200).tokens;
  TurnSpec spec = SpecOf("s", Refrain(3), 200);
  spec.create = true;
  spec.commit_partial = true;
  TurnTicket ticket;
  auto sink = worker.Start(std::move(spec), &ticket);
  sink->WaitTokens(20);
  worker.engine->Cancel(ticket);
  const Answer answer = sink->Wait();
  ASSERT_OK(answer.status);
  ASSERT_LE(answer.tokens.size(), 200u);
  EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), expected.begin()));
  EXPECT_EQ(worker.available(), 64);
}

// --- Sharing the steps

// Takes 2 ms and another half for each row, on a clock of its own.
class TimedModel final : public Model {
 public:
  struct Step {
    std::vector<int64_t> rows;  // of each sequence
    int64_t all() const { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); }
    bool decodes() const { return std::ranges::find(rows, 1) != rows.end(); }
  };
  // What follows the token at a position.
  using Says = std::function<common::TokenId(int32_t)>;
  TimedModel(testing::ManualClock& clock, std::vector<Step>& steps, Says says)
      : clock_(clock), steps_(steps), says_(std::move(says)) {
    config_.fingerprint = "timed";
    config_.vocab = 300;
    config_.context_tokens = 4096;
    config_.q_heads = config_.kv_heads = 1;
  }
  static absl::Duration TimeOf(int64_t rows) { return absl::Milliseconds(2 + 0.5 * rows); }
  const ModelConfig& config() const override { return config_; }
  size_t resident_bytes() const override { return 0; }
  absl::StatusOr<StepOutput> Forward(const StepBatch& batch, const kvstore::KvArena&,
                                     Communicator&) override {
    Step& step = steps_.emplace_back();
    for (const AttentionSequence& sequence : batch.sequences) step.rows.push_back(sequence.rows);
    clock_.Advance(TimeOf(step.all()));
    const auto rows = static_cast<int64_t>(batch.logit_rows.size());
    logits_.assign(static_cast<size_t>(rows * config_.vocab), 0);
    const TensorView logits{logits_.data(), rows, config_.vocab, config_.vocab};
    for (int64_t i = 0; i < rows; ++i) {
      const auto row = static_cast<size_t>(batch.logit_rows[static_cast<size_t>(i)]);
      logits.row(i)[says_(batch.positions[row])] = 1;
    }
    choices_.resize(batch.logit_rows.size());
    RETURN_IF_ERROR(sampler_.Sample(logits, batch.sampling, choices_));
    return StepOutput{.choices = choices_};
  }

 private:
  testing::ManualClock& clock_;
  std::vector<Step>& steps_;
  const Says says_;
  ModelConfig config_;
  std::vector<float> logits_;
  std::vector<RowChoice> choices_;
  RowSampler sampler_;
};

// In the queue: that it has started is told just before.
void AwaitQueued(CollectingSink& sink) {
  sink.WaitStarted();
  absl::SleepFor(absl::Milliseconds(50));
}

class SharedSteps : public ::testing::Test {
 protected:
  EngineFixture MakeWorker(
      EngineFixture::Options options, TimedModel::Says says = [](int32_t) { return 0; }) {
    options.clock = &clock_;
    std::vector<RankGroup::Rank> ranks;
    auto backend = *CreateBackend({.name = "reference", .threads = 1});
    auto pool = *kvstore::KvBlockPool::Create(
        {.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 8}, 2048,
        {{.memory = &backend->memory(), .first_kv_head = 0, .kv_heads = 1}});
    ranks.push_back(
        {std::move(backend), std::make_unique<TimedModel>(clock_, steps_, std::move(says))});
    return EngineFixture(options, *RankGroup::Assemble(std::move(ranks), std::move(pool),
                                                       absl::Seconds(30), common::Logger::Null()));
  }
  testing::ManualClock clock_;
  std::vector<TimedModel::Step> steps_;  // read it when the engine has nothing to do
};

TEST_F(SharedSteps, APromptDoesNotHoldUpAnAnswer) {
  EngineFixture worker =
      MakeWorker({.max_batch = 4, .max_step_tokens = 512, .max_step_time = absl::Milliseconds(20)});
  auto sink = std::make_shared<CollectingSink>();
  std::shared_ptr<CollectingSink> other;
  size_t tokens = 0;
  sink->on_token = [&](const StepToken&) {
    if (++tokens == 5) {
      other = worker.Start(SpecOf("", Text(600, 2), 2));
      AwaitQueued(*other);  // these steps take no time
    }
    return false;
  };
  EXPECT_OK(worker.Start(SpecOf("", Text(20), 300), nullptr, sink)->Wait().status);
  EXPECT_OK(other->Wait().status);
  int64_t prefilled = 0;
  size_t mixed = 0;
  for (const TimedModel::Step& step : steps_) {
    if (!step.decodes() || step.all() < 3) continue;
    ++mixed;
    prefilled += step.all() - 1;
    if (mixed < 7) continue;  // the first are trials
    EXPECT_LE(TimedModel::TimeOf(step.all()), absl::Milliseconds(22));
  }
  EXPECT_NEAR(static_cast<double>(prefilled), 600, 50) << "beside the answer";
  EXPECT_LT(mixed, 30u) << "and no slower than it must be";
}

TEST_F(SharedSteps, GuessingTakesFewerStepsWhereItHelps) {
  EngineFixture worker = MakeWorker({.speculation = {.max_rows = 8}});
  EXPECT_EQ(worker.Complete(Text(20), 300).tokens, Tokens(300, 0));
  EXPECT_LT(steps_.size(), 100u);
}

TEST_F(SharedSteps, GuessingIsGivenUpWhereItDoesNot) {
  // Two tokens that come again and again, and a third that cannot be foretold.
  EngineFixture worker = MakeWorker({.speculation = {.max_rows = 8}}, [](int32_t position) {
    return position % 3 < 2 ? 7 + position % 3 : Text(1, static_cast<uint32_t>(position))[0];
  });
  EXPECT_EQ(worker.Complete(Text(20), 300).tokens.size(), 300u);
  EXPECT_LT(Drafted(worker), 60);
  EXPECT_GT(Drafted(worker), 0) << "it was tried";
}

TEST_F(SharedSteps, AFloodOfOneTenantHardlyDelaysAnother) {
  EngineFixture worker = MakeWorker({.max_batch = 8, .max_step_tokens = 64, .max_queue = 40});
  std::vector<std::shared_ptr<CollectingSink>> flood;
  size_t steps_at_arrival = 0, steps_at_token = 0;
  auto quiet = std::make_shared<CollectingSink>();
  quiet->on_token = [&](const StepToken&) {
    if (steps_at_token == 0) steps_at_token = steps_.size();
    return false;
  };
  bool asked = false;
  const auto ask = [&](const StepToken&) {
    if (std::exchange(asked, true)) return false;
    steps_at_arrival = steps_.size();
    TurnSpec spec = SpecOf("", Text(30, 99), 4);
    spec.tenant = "quiet";
    worker.Start(std::move(spec), nullptr, quiet);
    AwaitQueued(*quiet);
    return false;
  };
  for (uint32_t i = 0; i < 40; ++i) {
    TurnSpec spec = SpecOf("", Text(700, i), 50);
    spec.tenant = "flood";
    auto sink = std::make_shared<CollectingSink>();
    sink->on_token = ask;
    flood.push_back(worker.Start(std::move(spec), nullptr, sink));
  }
  EXPECT_OK(quiet->Wait().status);
  EXPECT_LE(steps_at_token - steps_at_arrival, 8u);
  for (auto& sink : flood) EXPECT_OK(sink->Wait().status);
}

}  // namespace
}  // namespace loopserve::worker
