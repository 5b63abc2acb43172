#include "worker/engine/turn_io.h"

#include "tests/integration/engine_fixture.h"
#include "tests/support/manual_clock.h"

namespace loopserve::worker {
namespace {

using common::Reason;
using ::loopserve::testing::CollectingSink;
using ::loopserve::testing::EngineFixture;
using ::loopserve::testing::ReasonIs;
using ::loopserve::testing::SpecOf;
using ::loopserve::testing::Text;

class TurnIoTest : public ::testing::Test {
 protected:
  // A sequence as Submit makes it.
  Sequence Submitted(TurnSpec spec) {
    Sequence sequence;
    sequence.ticket = TurnTicket(1);
    sequence.arrival = clock_.Now();
    sequence.spec = std::move(spec);
    sequence.sink = sink_ = std::make_shared<CollectingSink>();
    return sequence;
  }
  TurnSpec Fresh(const std::string& session) {
    TurnSpec spec = SpecOf(session, Text(10));
    spec.create = true;
    spec.turn_id = "t1";
    return spec;
  }

  testing::ManualClock clock_;
  EngineFixture worker_{{.clock = &clock_}};
  EngineMetrics metrics_{*worker_.own_metrics, "tiny", 100, 1, {}};
  TurnIo io_{{.context_tokens = 100, .vocab = 300, .policy = "full"},
             *worker_.sessions,
             *worker_.kv,
             clock_,
             metrics_};
  std::shared_ptr<CollectingSink> sink_;
};

TEST_F(TurnIoTest, OpenFillsTheSequence) {
  Sequence sequence = Submitted(Fresh("s"));
  ASSERT_OK_AND_ASSIGN(const bool replayed, io_.Open(sequence));
  EXPECT_FALSE(replayed);
  EXPECT_EQ(sequence.tokens, Text(10));
  EXPECT_EQ(sequence.prompt_tokens, 10);
  EXPECT_EQ(sequence.history_tokens, 0);
  EXPECT_EQ(sequence.max_tokens, 8);
  EXPECT_TRUE(sequence.sampler);
  EXPECT_EQ(sequence.root, worker_.kv->Root(CacheNamespaceOf("", "")));
  sink_->WaitStarted();
}

TEST_F(TurnIoTest, MaxTokensIsWhatTheContextLeaves) {
  TurnSpec spec = SpecOf("", Text(95));
  spec.sampling.max_tokens.reset();
  Sequence sequence = Submitted(std::move(spec));
  ASSERT_OK(io_.Open(sequence));
  EXPECT_EQ(sequence.max_tokens, 5);
  Sequence full = Submitted(SpecOf("", Text(95), 6));
  EXPECT_THAT(io_.Open(full), ReasonIs(Reason::kContextLengthExceeded));
}

TEST_F(TurnIoTest, ALateTurnIsNotOpened) {
  TurnSpec spec = Fresh("s");
  spec.deadline = clock_.Now();
  Sequence sequence = Submitted(std::move(spec));
  EXPECT_THAT(io_.Open(sequence), ReasonIs(Reason::kDeadline));
}

TEST_F(TurnIoTest, CloseCommitsThenKeepsThenTells) {
  Sequence sequence = Submitted(Fresh("s"));
  ASSERT_OK(io_.Open(sequence));
  auto acquired = worker_.kv->Acquire(sequence.root, sequence.tokens, true, 0);
  TakeBlocks(sequence, **std::move(acquired), clock_.Now());
  sequence.kv_tokens = 10;
  sequence.tokens.push_back(7);
  sequence.first_token = sequence.last_token = clock_.Now();
  SettlePrompt(sequence);
  bool saved = false;
  io_.Close(sequence, FinishReason::kStop, [&] { saved = true; });
  EXPECT_TRUE(saved);
  EXPECT_OK(sink_->Wait().status);
  EXPECT_EQ(sink_->Wait().result.session_tokens, 11u);
  const auto record = *worker_.own_log.Get(common::SessionId("s"));
  EXPECT_EQ(record.tokens.size(), 11u);
  EXPECT_EQ(record.turns[0].finish_reason, "stop");
  EXPECT_EQ(record.turns[0].answer, "answer");
  EXPECT_EQ(worker_.kv->device().size(), 2);

  Sequence again = Submitted(Fresh("s"));
  ASSERT_OK_AND_ASSIGN(const bool replayed, io_.Open(again));
  EXPECT_TRUE(replayed);
  EXPECT_EQ(sink_->Wait().tokens, (testing::Tokens{7}));
}

TEST_F(TurnIoTest, Timings) {
  Sequence sequence;
  const absl::Time start = absl::UnixEpoch();
  sequence.arrival = start;
  sequence.admitted = start + absl::Seconds(1);
  sequence.computing = start + absl::Seconds(3);
  sequence.first_token = start + absl::Seconds(6);
  sequence.last_token = start + absl::Seconds(10);
  sequence.tokens.resize(19);
  sequence.prompt_tokens = 10;
  const TurnTimings timings = TimingsOf(sequence);
  EXPECT_EQ(timings.queue, absl::Seconds(1));
  EXPECT_EQ(timings.restore, absl::Seconds(2));
  EXPECT_EQ(timings.prefill, absl::Seconds(3));
  EXPECT_EQ(timings.ttft, absl::Seconds(6));
  EXPECT_EQ(timings.decode, absl::Seconds(4));
  EXPECT_DOUBLE_EQ(timings.tokens_per_second, 2);
}

}  // namespace
}  // namespace loopserve::worker
