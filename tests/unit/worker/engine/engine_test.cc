#include "worker/engine/engine.h"

#include <atomic>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "tests/integration/engine_fixture.h"
#include "tests/support/manual_clock.h"

namespace loopserve::worker {
namespace {

using common::Reason;
using ::loopserve::testing::Answer;
using ::loopserve::testing::CollectingSink;
using ::loopserve::testing::ComesToHave;
using ::loopserve::testing::ComputedRows;
using ::loopserve::testing::EngineFixture;
using ::loopserve::testing::ExpectAddsUp;
using ::loopserve::testing::Joined;
using ::loopserve::testing::MetricOf;
using ::loopserve::testing::ReasonIs;
using ::loopserve::testing::SlowSink;
using ::loopserve::testing::SpecOf;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::Text;
using ::loopserve::testing::Tokens;
using ::testing::HasSubstr;

// --- Generating

TEST(Engine, AnswersACompletion) {
  EngineFixture worker({});
  const Answer answer = worker.Complete(Text(20), 5);
  ExpectAddsUp(answer, 20);
  EXPECT_EQ(answer.tokens.size(), 5u);
  EXPECT_EQ(answer.result.finish_reason, FinishReason::kLength);
  EXPECT_EQ(answer.result.completion_tokens, 5u);
  EXPECT_EQ(answer.result.prompt.computed, 20u);
  EXPECT_GE(answer.result.timings.ttft, absl::ZeroDuration());
  EXPECT_GE(answer.result.timings.queue, absl::ZeroDuration());
}

TEST(Engine, GreedyIsReproducible) {
  EngineFixture one({}), two({});
  EXPECT_EQ(one.Complete(Text(20)).tokens, two.Complete(Text(20)).tokens);
}

TEST(Engine, StopTokensEndTheAnswerAndBelongToTheLog) {
  EngineFixture plain({});
  const Tokens free_run = plain.Complete(Text(20), 6).tokens;
  const common::TokenId stop = free_run[3];
  const auto first =
      static_cast<size_t>(std::find(free_run.begin(), free_run.end(), stop) - free_run.begin());

  EngineFixture worker({.eos = {stop}});
  std::vector<bool> flags;
  auto sink = std::make_shared<CollectingSink>();
  sink->on_token = [&](const StepToken& token) {
    flags.push_back(token.is_stop);
    return false;
  };
  TurnSpec spec = SpecOf("s", Text(20), 6);
  spec.create = true;
  spec.sampling.ignore_eos = false;
  const Answer answer = worker.Start(std::move(spec), nullptr, sink)->Wait();
  EXPECT_EQ(answer.result.finish_reason, FinishReason::kStop);
  ASSERT_EQ(answer.tokens.size(), first + 1);
  EXPECT_EQ(answer.tokens.back(), stop);
  EXPECT_TRUE(flags.back());
  EXPECT_EQ(std::count(flags.begin(), flags.end(), true), 1);
  EXPECT_EQ(worker.own_log.Get(common::SessionId("s"))->tokens.back(), stop);

  // ignore_eos, and stop_token_ids that do what eos would have done.
  TurnSpec ids = SpecOf("", Text(20), 6);
  EXPECT_EQ(worker.Run(std::move(ids)).tokens, free_run);
  ids = SpecOf("", Text(20), 6);
  ids.sampling.stop_token_ids = {stop};
  EXPECT_EQ(worker.Run(std::move(ids)).tokens.size(), first + 1);
}

TEST(Engine, MinTokensHoldsStopTokensBack) {
  EngineFixture plain({});
  const Tokens free_run = plain.Complete(Text(20), 6).tokens;
  EngineFixture worker({.eos = {free_run[0]}});
  TurnSpec spec = SpecOf("", Text(20), 6);
  spec.sampling.ignore_eos = false;
  spec.sampling.min_tokens = 4;
  const Answer answer = worker.Run(std::move(spec));
  ASSERT_GE(answer.tokens.size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_NE(answer.tokens[i], free_run[0]);
}

TEST(Engine, TheSinkMayEndTheTurn) {
  EngineFixture worker({});
  auto sink = std::make_shared<CollectingSink>();
  size_t seen = 0;
  sink->on_token = [&](const StepToken&) { return ++seen == 3; };
  const Answer answer = worker.Start(SpecOf("", Text(9), 20), nullptr, sink)->Wait();
  EXPECT_EQ(answer.tokens.size(), 3u);
  EXPECT_EQ(answer.result.finish_reason, FinishReason::kStop);
}

TEST(Engine, LogprobsReachTheSink) {
  EngineFixture worker({});
  auto sink = std::make_shared<CollectingSink>();
  std::vector<std::vector<TokenLogprob>> tops;
  std::vector<float> chosen;
  sink->on_token = [&](const StepToken& token) {
    tops.emplace_back(token.top.begin(), token.top.end());
    chosen.push_back(token.logprob);
    return false;
  };
  TurnSpec spec = SpecOf("", Text(9), 3);
  spec.sampling.logprobs = 2;
  const Answer answer = worker.Start(std::move(spec), nullptr, sink)->Wait();
  ASSERT_EQ(tops.size(), 3u);
  for (size_t i = 0; i < tops.size(); ++i) {
    ASSERT_EQ(tops[i].size(), 2u);
    EXPECT_EQ(tops[i][0].token, answer.tokens[i]) << "greedy takes the best";
    EXPECT_EQ(tops[i][0].logprob, chosen[i]);
    EXPECT_LT(chosen[i], 0);
  }
}

TEST(Engine, ASeededAnswerIsTheSameInAnyCompany) {
  auto spec = [] {
    TurnSpec s = SpecOf("", Text(15), 10);
    s.sampling.temperature = 1.5f;
    s.sampling.seed = 7;
    return s;
  };
  EngineFixture alone({});
  const Tokens expected = alone.Run(spec()).tokens;
  EngineFixture busy({});
  std::vector<std::shared_ptr<CollectingSink>> others;
  for (uint32_t i = 0; i < 3; ++i) others.push_back(busy.Start(SpecOf("", Text(30, i + 5), 20)));
  EXPECT_EQ(busy.Run(spec()).tokens, expected);
  for (auto& other : others) EXPECT_OK(other->Wait().status);
  TurnSpec reseeded = spec();
  reseeded.sampling.seed = 8;
  EXPECT_NE(busy.Run(std::move(reseeded)).tokens, expected);
}

TEST(Engine, BatchedIsAloneToTheBit) {
  std::map<uint32_t, Tokens> expected;
  for (uint32_t i = 0; i < 8; ++i) {
    EngineFixture alone({.max_batch = 1});
    expected[i] = alone.Complete(Text(10 + 7 * i, i), 12).tokens;
  }
  EngineFixture worker({.max_batch = 4});
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint32_t i = 0; i < 8; ++i) {
    sinks.push_back(worker.Start(SpecOf("", Text(10 + 7 * i, i), 12)));
  }
  for (uint32_t i = 0; i < 8; ++i) EXPECT_EQ(sinks[i]->Wait().tokens, expected[i]) << i;
}

TEST(Engine, TheSizeOfAChunkDoesNotMatter) {
  EngineFixture whole({.max_step_tokens = 128});
  const Tokens expected = whole.Complete(Text(100), 10).tokens;
  for (int64_t step : {2, 7, 8, 33}) {
    EngineFixture worker({.max_batch = 1, .max_step_tokens = step});
    EXPECT_EQ(worker.Complete(Text(100), 10).tokens, expected) << step;
  }
}

TEST(Engine, PreemptionDoesNotChangeTokens) {
  std::map<uint32_t, Tokens> expected;
  EngineFixture roomy({.blocks = 200});
  for (uint32_t i = 0; i < 4; ++i) expected[i] = roomy.Complete(Text(20, i), 60).tokens;
  // Each needs ten blocks in the end; together they need 40 of 14.
  EngineFixture worker({.blocks = 14});
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint32_t i = 0; i < 4; ++i) sinks.push_back(worker.Start(SpecOf("", Text(20, i), 60)));
  for (uint32_t i = 0; i < 4; ++i) {
    const Answer& answer = sinks[i]->Wait();
    EXPECT_EQ(answer.tokens, expected[i]) << i;
    ExpectAddsUp(answer, 20);
  }
  EXPECT_GT(MetricOf(worker, "loopserve_engine_preemptions_total{model=\"tiny\"}"), 0);
  EXPECT_EQ(worker.available(), 14);
}

TEST(Engine, APreemptedTurnIsParkedAndNotComputedAgain) {
  const testing::ManualClock clock;  // stands still: what is stored is loaded
  const auto run = [&](EngineFixture& worker) {
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (uint32_t i = 0; i < 4; ++i) sinks.push_back(worker.Start(SpecOf("", Text(20, i), 60)));
    std::vector<Tokens> answers;
    for (const auto& sink : sinks) {
      ExpectAddsUp(sink->Wait(), 20);
      answers.push_back(sink->Wait().tokens);
    }
    return answers;
  };
  EngineFixture roomy({.blocks = 200, .clock = &clock});
  const std::vector<Tokens> expected = run(roomy);
  EngineFixture worker({.blocks = 14,
                        .store =
                            [](kvstore::KvBlockPool& pool, kvstore::KvMetrics& metrics) {
                              return *kvstore::CreateKvStore({.host_bytes = 1 << 24}, pool, metrics,
                                                             common::Logger::Null());
                            },
                        .clock = &clock});
  EXPECT_EQ(run(worker), expected);
  const double preemptions = MetricOf(worker, "loopserve_engine_preemptions_total{model=\"tiny\"}");
  EXPECT_GT(preemptions, 0);
  // Only a last token, whose logits were still wanted.
  EXPECT_LE(ComputedRows(worker), ComputedRows(roomy) + preemptions);
  EXPECT_TRUE(ComesToHave(worker, 14));
}

// Also more than there are KV heads: 3 with 9 query heads, 1 with 4.
TEST(Engine, AnyNumberOfRanksSaysTheSame) {
  const std::pair<std::string, std::vector<int>> models[] = {{"nine", {2, 3, 4, 5, 6, 9}},
                                                             {"mqa", {2, 4}}};
  for (const auto& [preset, numbers] : models) {
    for (const std::string backend : {"reference", "cpu"}) {
      EngineFixture one({.preset = preset, .backend = backend});
      const Tokens expected = one.Complete(Text(40), 12).tokens;
      for (const int tp : numbers) {
        EngineFixture worker({.preset = preset, .backend = backend, .tp = tp});
        EXPECT_EQ(worker.Complete(Text(40), 12).tokens, expected)
            << preset << " on " << backend << ", tp " << tp;
        EXPECT_EQ(MetricOf(worker, "loopserve_tp_size{model=\"tiny\"}"), tp);
        EXPECT_EQ(worker.available(), 64);
      }
    }
  }
}

TEST(Engine, APoolOfOneBlockServesWhatFits) {
  EngineFixture worker({.block_tokens = 16, .blocks = 1});
  EXPECT_EQ(worker.engine->context_tokens(), 16);
  for (int i = 0; i < 3; ++i) {
    const Answer answer = worker.Complete(Text(10), 6);
    ExpectAddsUp(answer, 10);
    EXPECT_EQ(answer.tokens.size(), 6u);
  }
  EXPECT_THAT(worker.Complete(Text(11), 6).status, ReasonIs(Reason::kContextLengthExceeded));
}

// --- Sessions

TEST(Engine, ASessionContinuesItsLog) {
  EngineFixture worker({});
  const Answer first = worker.Turn("s", Text(20, 1));
  const Answer second = worker.Turn("s", Text(10, 2));
  ExpectAddsUp(first, 20);
  ExpectAddsUp(second, 38);
  EXPECT_EQ(second.result.turn, 1u);
  EXPECT_EQ(second.result.session_tokens, 46u);
  // All but the last token of the answer had its KV computed.
  EXPECT_EQ(Restored(second, kvstore::Place::kDevice), 27u);
  EXPECT_EQ(second.result.prompt.computed, 11u);
  EXPECT_EQ(second.result.prompt.recompute_reason, "");
  EngineFixture fresh({});
  EXPECT_EQ(fresh.Complete(Joined({Text(20, 1), first.tokens, Text(10, 2)})).tokens, second.tokens);
}

TEST(Engine, RenderSeesTheRecordAndItsErrorIsTheTurns) {
  EngineFixture worker({});
  worker.Turn("s", Text(20, 1));
  TurnSpec spec = SpecOf("s", {});
  size_t seen = 0;
  spec.render = [&](const kvstore::SessionRecord& record) -> absl::StatusOr<Tokens> {
    seen = record.tokens.size();
    return common::InvalidField("messages", "bad");
  };
  EXPECT_THAT(worker.Run(std::move(spec)).status, ReasonIs(Reason::kInvalidField));
  EXPECT_EQ(seen, 28u);
  EXPECT_THAT(worker.Run(SpecOf("s", {})).status, ReasonIs(Reason::kInvalidField));
  EXPECT_THAT(worker.Run(SpecOf("s", {1 << 20})).status, ReasonIs(Reason::kInvalidField));
  EXPECT_THAT(worker.Run(SpecOf("s", {-1})).status, ReasonIs(Reason::kInvalidField));
  EXPECT_OK(worker.Turn("s", Text(5, 2)).status);
}

TEST(Engine, AReplayedTurnRunsNothing) {
  EngineFixture worker({});
  auto spec = [] {
    TurnSpec s = SpecOf("s", Text(20));
    s.create = true;
    s.turn_id = "t1";
    return s;
  };
  const Answer first = worker.Run(spec());
  const Answer again = worker.Run(spec());
  EXPECT_OK(again.status);
  EXPECT_TRUE(again.replayed);
  EXPECT_TRUE(again.result.replayed);
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_EQ(again.replayed_text, "answer");
  EXPECT_EQ(again.result.finish_reason, first.result.finish_reason);
  EXPECT_EQ(again.result.prompt.prompt_tokens(), 20u);
  EXPECT_EQ(worker.own_log.Get(common::SessionId("s"))->turns.size(), 1u);
}

TEST(Engine, ASecondTurnAtOnceIsBusy) {
  EngineFixture worker({});
  worker.Turn("s", Text(5));
  TurnTicket ticket;
  auto running = worker.Start(SpecOf("s", Text(5), 400), &ticket, SlowSink());
  running->WaitTokens(1);
  EXPECT_THAT(worker.Run(SpecOf("s", Text(5))).status, ReasonIs(Reason::kSessionBusy));
  worker.engine->Cancel(ticket);
  running->Wait();
  EXPECT_OK(worker.Run(SpecOf("s", Text(5))).status);
}

TEST(Engine, AStaleEpochIsRefused) {
  EngineFixture worker({});
  worker.Turn("s", Text(5), 4, 7);
  EXPECT_THAT(worker.Turn("s", Text(5), 4, 6).status, ReasonIs(Reason::kStaleEpoch));
}

TEST(Engine, EphemeralSavesNothing) {
  EngineFixture worker({});
  worker.Turn("s", Text(20, 1));
  const int64_t cached = worker.kv->device().size();
  TurnSpec spec = SpecOf("s", Text(30, 2));
  spec.ephemeral = true;
  EXPECT_OK(worker.Run(std::move(spec)).status);
  EXPECT_EQ(worker.own_log.Get(common::SessionId("s"))->turns.size(), 1u);
  EXPECT_EQ(worker.kv->device().size(), cached);
  EXPECT_EQ(worker.Turn("s", Text(30, 2)).result.turn, 1u);
}

TEST(Engine, BypassCacheComputesEverything) {
  EngineFixture worker({});
  worker.Turn("s", Text(20, 1));
  TurnSpec spec = SpecOf("s", Text(10, 2));
  spec.bypass_cache = true;
  spec.ephemeral = true;
  const Answer bypassed = worker.Run(std::move(spec));
  ExpectAddsUp(bypassed, 38);
  EXPECT_EQ(bypassed.result.prompt.computed, 38u);
  EXPECT_EQ(bypassed.result.prompt.recompute_reason, "policy");
  const Answer cached = worker.Turn("s", Text(10, 2));
  EXPECT_EQ(cached.tokens, bypassed.tokens);
  EXPECT_LT(cached.result.prompt.computed, 38u);
}

TEST(Engine, SessionsShareAPromptsPrefixWhileTheFirstStillRuns) {
  EngineFixture worker({});
  const Tokens system = Text(32, 9);
  TurnTicket ticket;
  TurnSpec long_turn = SpecOf("a", Joined({system, Text(4, 1)}), 300);
  long_turn.create = true;
  auto running = worker.Start(std::move(long_turn), &ticket, SlowSink());
  running->WaitTokens(1);
  const Answer other = worker.Turn("b", Joined({system, Text(4, 2)}));
  EXPECT_GE(Restored(other, kvstore::Place::kDevice), 32u);
  ExpectAddsUp(other, 36);
  worker.engine->Cancel(ticket);
  running->Wait();
}

TEST(Engine, NamespacesDoNotShare) {
  EngineFixture worker({});
  TurnSpec a = SpecOf("", Text(40));
  a.cache_namespace = "a";
  TurnSpec b = SpecOf("", Text(40));
  b.cache_namespace = "b";
  worker.Run(std::move(a));
  EXPECT_EQ(worker.Run(std::move(b)).result.prompt.computed, 40u);
}

// --- Refusals

TEST(Engine, BadSamplingIsRefusedAtTheDoor) {
  EngineFixture worker({});
  TurnSpec spec = SpecOf("", Text(5));
  spec.sampling.top_p = 2;
  EXPECT_THAT(worker.engine->Submit(std::move(spec), std::make_shared<CollectingSink>()),
              ReasonIs(Reason::kInvalidField));
}

TEST(Engine, TooLongAPromptIsRefusedWithTheNumbers) {
  EngineFixture worker({.blocks = 8});  // 64 tokens
  EXPECT_THAT(worker.Complete(Text(60), 5).status, ReasonIs(Reason::kContextLengthExceeded));
  EXPECT_THAT(worker.Complete(Text(60), 5).status.message(), HasSubstr("64 tokens"));
  EXPECT_OK(worker.Complete(Text(60), 4).status);
  TurnSpec open_end = SpecOf("", Text(60));
  open_end.sampling.max_tokens.reset();
  EXPECT_EQ(worker.Run(std::move(open_end)).tokens.size(), 4u);
}

TEST(Engine, AFullQueueRefusesWithRetryInfo) {
  EngineFixture worker({.max_batch = 1, .max_queue = 2});
  TurnTicket ticket;
  auto running = worker.Start(SpecOf("", Text(5), 400), &ticket, SlowSink());
  running->WaitTokens(1);
  auto second = worker.Start(SpecOf("", Text(5), 2));
  auto third = worker.Start(SpecOf("", Text(6), 2));
  const auto refused =
      worker.engine->Submit(SpecOf("", Text(5)), std::make_shared<CollectingSink>());
  EXPECT_THAT(refused, ReasonIs(Reason::kQueueFull));
  EXPECT_TRUE(common::InfoOf(refused.status()).retry_after);
  EXPECT_EQ(worker.engine->load().waiting, 2);
  worker.engine->Cancel(ticket);
  EXPECT_OK(second->Wait().status);
  EXPECT_OK(third->Wait().status);
  EXPECT_OK(worker.Complete(Text(5)).status);
}

TEST(Engine, OptionsThatContradictEachOther) {
  EngineFixture worker({});
  EngineOptions options;
  options.max_batch = 8;
  options.max_step_tokens = 8;
  auto create = [&] {
    return Engine::Create(options, *worker.ranks, *worker.kv, *worker.sessions, worker.real_clock,
                          *worker.own_metrics, common::Logger::Null())
        .status();
  };
  EXPECT_THAT(create(), StatusIs(absl::StatusCode::kInvalidArgument));
  options.max_step_tokens = 9;
  options.policy = "nope";
  EXPECT_THAT(create(), StatusIs(absl::StatusCode::kInvalidArgument));
}

// --- Cancelling and deadlines

TEST(Engine, CancelFreesTheBlocksAndLeavesNoTrace) {
  EngineFixture worker({});
  worker.Turn("s", Text(20, 1));
  const std::string active = "loopserve_kv_blocks{state=\"active\",tier=\"device\"}";
  EXPECT_EQ(MetricOf(worker, active), 0);
  TurnTicket ticket;
  auto sink = worker.Start(SpecOf("s", Text(20, 2), 400), &ticket, SlowSink());
  sink->WaitTokens(2);
  EXPECT_GT(MetricOf(worker, active), 0);
  worker.engine->Cancel(ticket);
  EXPECT_THAT(sink->Wait().status, ReasonIs(Reason::kCancelled));
  EXPECT_EQ(MetricOf(worker, active), 0);
  EXPECT_EQ(worker.available(), 64);
  EXPECT_EQ(worker.own_log.Get(common::SessionId("s"))->turns.size(), 1u);
  EXPECT_OK(worker.Turn("s", Text(5, 3)).status);
}

TEST(Engine, AfterACancelAtMostOneTokenMoreIsSampled) {
  EngineFixture worker({});
  TurnTicket ticket;
  std::atomic<size_t> tokens = 0;
  std::atomic<size_t> at_cancel = 0;
  auto sink = std::make_shared<CollectingSink>();
  testing::Signal submitted;
  sink->on_token = [&](const StepToken&) {
    if (++tokens == 3) {
      submitted.Wait();
      worker.engine->Cancel(ticket);
      at_cancel = tokens.load();
    }
    return false;
  };
  worker.Start(SpecOf("", Text(5), 400), &ticket, sink);
  submitted.Notify();
  sink->Wait();
  EXPECT_EQ(tokens, at_cancel);
}

TEST(Engine, CommitPartialKeepsWhatWasGenerated) {
  EngineFixture worker({});
  TurnSpec spec = SpecOf("s", Text(10), 400);
  spec.create = true;
  spec.commit_partial = true;
  TurnTicket ticket;
  auto sink = worker.Start(std::move(spec), &ticket, SlowSink());
  sink->WaitTokens(3);
  worker.engine->Cancel(ticket);
  const Answer answer = sink->Wait();
  ASSERT_OK(answer.status);
  EXPECT_EQ(answer.result.finish_reason, FinishReason::kCancelled);
  const auto record = *worker.own_log.Get(common::SessionId("s"));
  EXPECT_EQ(record.tokens.size(), 10 + answer.tokens.size());
  EXPECT_EQ(record.turns[0].finish_reason, "cancelled");
}

TEST(Engine, CancelWhileWaitingAndOfUnknownTickets) {
  EngineFixture worker({.max_batch = 1});
  TurnTicket first, second;
  auto running = worker.Start(SpecOf("", Text(5), 400), &first, SlowSink());
  running->WaitTokens(1);
  auto waiting = worker.Start(SpecOf("", Text(5), 4), &second);
  waiting->WaitStarted();
  worker.engine->Cancel(second);
  EXPECT_THAT(waiting->Wait().status, ReasonIs(Reason::kCancelled));
  worker.engine->Cancel(TurnTicket(12345));
  worker.engine->Cancel(second);
  worker.engine->Cancel(first);
  running->Wait();
  EXPECT_OK(worker.Complete(Text(5)).status);
}

TEST(Engine, CancelWhileItIsBeingOpened) {
  EngineFixture worker({});
  testing::Signal entered, go_on;
  TurnSpec spec = SpecOf("s", {});
  spec.create = true;
  spec.render = [&](const kvstore::SessionRecord&) {
    entered.Notify();
    go_on.Wait();
    return Text(5);
  };
  TurnTicket ticket;
  auto sink = worker.Start(std::move(spec), &ticket);
  entered.Wait();
  worker.engine->Cancel(ticket);
  // A whole other turn, so that the cancellation has been seen before the opening ends.
  EXPECT_OK(worker.Complete(Text(5)).status);
  go_on.Notify();
  EXPECT_THAT(sink->Wait().status, ReasonIs(Reason::kCancelled));
}

TEST(Engine, ADeadlineEndsATurn) {
  testing::ManualClock clock;
  EngineFixture worker({.clock = &clock});
  TurnSpec spec = SpecOf("", Text(5), 400);
  spec.deadline = clock.Now() + absl::Seconds(5);
  auto sink = std::make_shared<CollectingSink>();
  size_t tokens = 0;
  sink->on_token = [&](const StepToken&) {
    if (++tokens == 3) clock.Advance(absl::Seconds(5));
    return false;
  };
  EXPECT_THAT(worker.Start(std::move(spec), nullptr, sink)->Wait().status,
              ReasonIs(Reason::kDeadline));
  EXPECT_EQ(tokens, 3u);
  TurnSpec late = SpecOf("", Text(5));
  late.deadline = clock.Now();
  EXPECT_THAT(worker.Run(std::move(late)).status, ReasonIs(Reason::kDeadline));
  EXPECT_EQ(worker.available(), 64);
}

// --- Failures and the end

class FlakyModel final : public Model {
 public:
  explicit FlakyModel(std::atomic<bool>& fail) : fail_(fail) {
    config_.fingerprint = "flaky";
    config_.vocab = 300;
    config_.context_tokens = 512;
    config_.q_heads = config_.kv_heads = 1;
  }
  const ModelConfig& config() const override { return config_; }
  size_t resident_bytes() const override { return 0; }
  absl::StatusOr<StepOutput> Forward(const StepBatch& batch, const kvstore::KvArena&,
                                     Communicator&) override {
    if (fail_) return absl::InternalError("boom");
    choices_.assign(batch.logit_rows.size(), RowChoice());
    return StepOutput{.choices = choices_};
  }

 private:
  std::atomic<bool>& fail_;
  ModelConfig config_;
  std::vector<RowChoice> choices_;
};

std::unique_ptr<RankGroup> FlakyRanks(std::atomic<bool>& fail) {
  std::vector<RankGroup::Rank> ranks;
  auto backend = *CreateBackend({.name = "reference", .threads = 1});
  auto pool = *kvstore::KvBlockPool::Create(
      {.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 8}, 64,
      {{.memory = &backend->memory(), .first_kv_head = 0, .kv_heads = 1}});
  ranks.push_back({std::move(backend), std::make_unique<FlakyModel>(fail)});
  return *RankGroup::Assemble(std::move(ranks), std::move(pool), absl::Seconds(30),
                              common::Logger::Null());
}

TEST(Engine, AFailedStepFailsItsTurnsAndTheEngineLivesOn) {
  std::atomic<bool> fail = false;
  EngineFixture worker({}, FlakyRanks(fail));
  auto sink = std::make_shared<CollectingSink>();
  size_t tokens = 0;
  sink->on_token = [&](const StepToken&) {
    if (++tokens == 3) fail = true;
    return false;
  };
  TurnSpec spec = SpecOf("s", Text(10), 100);
  spec.create = true;
  const Answer answer = worker.Start(std::move(spec), nullptr, sink)->Wait();
  EXPECT_THAT(answer.status, StatusIs(absl::StatusCode::kInternal, HasSubstr("boom")));
  EXPECT_EQ(tokens, 3u);
  EXPECT_EQ(worker.available(), 64);
  fail = false;
  EXPECT_OK(worker.Turn("s", Text(10)).status);
  EXPECT_EQ(MetricOf(worker, "loopserve_requests_finished_total{model=\"tiny\",reason=\"error\"}"),
            1);
}

TEST(Engine, ACommitThatFailsIsTheTurnsError) {
  EngineFixture worker({});
  worker.Turn("s", Text(10));
  auto sink = std::make_shared<CollectingSink>();
  sink->on_token = [&](const StepToken&) {
    worker.own_log.FailWith(absl::ResourceExhaustedError("disk full"));
    return false;
  };
  const Answer answer = worker.Start(SpecOf("s", Text(5)), nullptr, sink)->Wait();
  EXPECT_THAT(answer.status, StatusIs(absl::StatusCode::kInternal));
  worker.own_log.FailWith(absl::OkStatus());
  EXPECT_EQ(worker.own_log.Get(common::SessionId("s"))->turns.size(), 1u);
  EXPECT_OK(worker.Turn("s", Text(5)).status);
  EXPECT_EQ(worker.available(), 64);
}

TEST(Engine, DrainRefusesNewTurnsAndWaitsForTheOthers) {
  EngineFixture worker({});
  TurnTicket ticket;
  auto running = worker.Start(SpecOf("", Text(5), 400), &ticket, SlowSink());
  running->WaitTokens(1);
  EXPECT_THAT(worker.engine->Drain(absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(worker.engine->Submit(SpecOf("", Text(5)), std::make_shared<CollectingSink>()),
              ReasonIs(Reason::kDraining));
  EXPECT_FALSE(running->done());
  worker.engine->Cancel(ticket);
  EXPECT_OK(worker.engine->Drain(absl::InfiniteDuration()));
  EXPECT_TRUE(running->done());
}

TEST(Engine, StopEndsEverythingOnceAndForAll) {
  EngineFixture worker({.max_batch = 1});
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    sinks.push_back(worker.Start(SpecOf("", Text(5), 400), nullptr, SlowSink()));
  }
  sinks[0]->WaitTokens(1);
  worker.engine->Stop();
  for (auto& sink : sinks) EXPECT_THAT(sink->Wait().status, ReasonIs(Reason::kDraining));
  worker.engine->Stop();
  EXPECT_THAT(worker.engine->Submit(SpecOf("", Text(5)), std::make_shared<CollectingSink>()),
              ReasonIs(Reason::kDraining));
  EXPECT_EQ(worker.available(), 64);
}

TEST(Engine, LoadAndLiveness) {
  EngineFixture worker({});
  EXPECT_TRUE(worker.engine->alive(absl::ZeroDuration())) << "idle is alive";
  EXPECT_EQ(worker.engine->load().running, 0);
  testing::Signal entered, go_on;
  auto sink = std::make_shared<CollectingSink>();
  bool first = true;
  sink->on_token = [&](const StepToken&) {
    if (std::exchange(first, false)) {
      entered.Notify();
      go_on.Wait();
    }
    return false;
  };
  worker.Start(SpecOf("", Text(5), 3), nullptr, sink);
  entered.Wait();
  EXPECT_FALSE(worker.engine->alive(absl::ZeroDuration()));
  EXPECT_TRUE(worker.engine->alive(absl::Hours(1)));
  go_on.Notify();
  EXPECT_OK(sink->Wait().status);
}

TEST(Engine, ReturningTurnsAreCountedByHowTheyGotTheirKv) {
  EngineFixture worker({});
  worker.Turn("s", Text(20, 1));
  worker.Turn("s", Text(10, 2));
  worker.kv->device().Clear();
  worker.Turn("s", Text(10, 3));
  EXPECT_EQ(MetricOf(worker, "loopserve_restore_plans_total{decision=\"reuse\"}"), 1);
  EXPECT_EQ(MetricOf(worker, "loopserve_restore_plans_total{decision=\"recompute\"}"), 1);
}

TEST(Engine, TokensBySourceSumToPromptTokens) {
  EngineFixture worker({});
  worker.Turn("s", Text(20, 1));
  worker.Turn("s", Text(10, 2));
  worker.Complete(Text(7, 3));
  double by_source = 0;
  for (const char* source : {"computed", "device", "host", "disk", "remote"}) {
    for (const char* bits : {"16", "8"}) {
      by_source +=
          MetricOf(worker, absl::StrCat("loopserve_prompt_tokens_by_source_total{bits=\"", bits,
                                        "\",model=\"tiny\",source=\"", source, "\"}"));
    }
  }
  EXPECT_EQ(by_source, MetricOf(worker, "loopserve_prompt_tokens_total{model=\"tiny\"}"));
  EXPECT_EQ(by_source, 20 + 38 + 7);
  EXPECT_EQ(MetricOf(worker, "loopserve_generation_tokens_total{model=\"tiny\"}"), 24);
  EXPECT_EQ(MetricOf(worker, "loopserve_requests_finished_total{model=\"tiny\",reason=\"length\"}"),
            3);
}

}  // namespace
}  // namespace loopserve::worker
