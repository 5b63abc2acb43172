#include "worker/model/step_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::IsOk;
using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

constexpr auto kBad = absl::StatusCode::kInvalidArgument;

class StepCheckTest : public ::testing::Test {
 protected:
  absl::Status Run() {
    return CheckStep({.tokens = tokens_,
                      .positions = positions_,
                      .sequences = sequences_,
                      .logit_rows = logit_rows_,
                      .sampling = sampling_.view()},
                     arena_, *comms_[0], config_, {.rank = 0, .size = 1},
                     {.max_step_tokens = 8, .max_logit_rows = 4});
  }

  const ModelConfig config_ = {.layers = 2,
                               .q_heads = 6,
                               .kv_heads = 3,
                               .head_dim = 16,
                               .vocab = 279,
                               .context_tokens = 512};
  std::vector<std::unique_ptr<Communicator>> comms_ =
      CreateThreadCommunicators(1, absl::Seconds(10));
  kvstore::KvArena arena_ = {.shape = KvShapeOf(config_, kvstore::KvDtype::kBf16, 16),
                             .num_blocks = 3};
  std::vector<common::BlockId> blocks_ = {common::BlockId(2), common::BlockId(0)};
  std::vector<common::TokenId> tokens_ = {5, 6, 7};
  std::vector<int32_t> positions_ = {0, 1, 2};
  std::vector<AttentionSequence> sequences_ = {
      {.first_row = 0, .rows = 3, .kv_tokens = 3, .blocks = blocks_}};
  std::vector<int32_t> logit_rows_ = {2};
  SamplingPlan sampling_;
};

TEST_F(StepCheckTest, RunsASoundBatch) { EXPECT_THAT(Run(), IsOk()); }

TEST_F(StepCheckTest, RefusesTokensOutsideTheVocabulary) {
  for (const common::TokenId token : {-1, 279, 1 << 30}) {
    tokens_[1] = token;
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("vocabulary")));
  }
}

TEST_F(StepCheckTest, RefusesPositionsOutsideTheContext) {
  for (const int32_t position : {-1, 512}) {
    positions_[1] = position;
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("position")));
  }
  positions_[1] = 2;  // of another row
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("position")));
  positions_.pop_back();
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("position")));
}

TEST_F(StepCheckTest, RefusesMoreRowsThanItWasLoadedFor) {
  tokens_.assign(9, 1);
  positions_.assign(9, 1);
  sequences_[0].rows = 9;
  sequences_[0].kv_tokens = 9;
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("exceeds 8")));
  tokens_.clear();
  positions_.clear();
  EXPECT_THAT(Run(), StatusIs(kBad));
}

TEST_F(StepCheckTest, RefusesLogitRowsOutOfOrderOrOutside) {
  for (const std::vector<int32_t>& rows : {std::vector<int32_t>{3}, {-1}, {1, 1}, {2, 0}}) {
    logit_rows_ = rows;
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("logit rows")));
  }
}

TEST_F(StepCheckTest, RefusesSamplingThatDoesNotFit) {
  sampling_.rows.resize(1);
  EXPECT_THAT(Run(), IsOk());
  sampling_.rows.resize(2);
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("all of its logit rows")));
  sampling_.rows = {{.adjustments = 1}};
  EXPECT_THAT(Run(), StatusIs(kBad)) << "there is no adjustment";
  for (const common::TokenId token : {-1, 279}) {
    sampling_.adjustments = {{.token = token}};
    EXPECT_THAT(Run(), StatusIs(kBad)) << token;
  }
}

TEST_F(StepCheckTest, RefusesSequencesThatDoNotCoverTheStep) {
  const AttentionSequence sound = sequences_[0];
  for (const auto& change :
       {+[](AttentionSequence& s) { s.first_row = 1; }, +[](AttentionSequence& s) { s.rows = 2; },
        +[](AttentionSequence& s) { s.rows = 4; }, +[](AttentionSequence& s) { s.rows = 0; },
        +[](AttentionSequence& s) { s.kv_tokens = 2; },
        +[](AttentionSequence& s) { s.blocks = {}; }}) {
    sequences_[0] = sound;
    change(sequences_[0]);
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("sequence")));
  }
}

TEST_F(StepCheckTest, TakesSequencesThatContinue) {
  sequences_ = {{.first_row = 0, .rows = 2, .kv_tokens = 32, .blocks = blocks_},
                {.first_row = 2, .rows = 1, .kv_tokens = 1, .blocks = blocks_}};
  positions_ = {30, 31, 0};
  EXPECT_THAT(Run(), IsOk());
  sequences_[0].kv_tokens = 33;
  positions_ = {31, 32, 0};
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("fewer blocks")));
}

TEST_F(StepCheckTest, RefusesBlocksOutsideTheArena) {
  blocks_[0] = common::BlockId(3);
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("block")));
}

TEST_F(StepCheckTest, RefusesPlansOfOtherHeads) {
  LinePlan lines;
  lines.heads.resize(6);
  sequences_[0].lines = &lines;
  EXPECT_THAT(Run(), IsOk());
  lines.heads.resize(5);
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("heads")));
  WorkingSet keys;
  keys.keys.resize(3);
  sequences_[0].lines = nullptr;
  sequences_[0].working_set = &keys;
  EXPECT_THAT(Run(), IsOk());
  keys.keys.resize(4);
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("heads")));
}

TEST_F(StepCheckTest, RefusesAForeignArenaOrCommunicator) {
  arena_.shape.kv_heads = 2;
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("arena")));
  arena_.shape.kv_heads = 3;
  comms_ = CreateThreadCommunicators(2, absl::Seconds(10));
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("communicator")));
}

TEST(PositionsTest, AreTheModelsContextUnlessFewerWereAskedFor) {
  const ModelConfig config = {.context_tokens = 512};
  EXPECT_EQ(PositionsOf(config, {}), 512);
  EXPECT_EQ(PositionsOf(config, {.max_positions = 100}), 100);
}

}  // namespace
}  // namespace loopserve::worker
