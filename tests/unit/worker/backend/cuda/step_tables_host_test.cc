#include "worker/backend/cuda/step_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/status_matchers.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::ElementsAre;

class StepTablesTest : public ::testing::Test {
 protected:
  StepTablesTest() {
    arena_.shape = {.layers = 1, .kv_heads = 1, .head_dim = 8, .block_tokens = 4};
    sequences_ = {{.first_row = 0, .rows = 3, .kv_tokens = 9, .blocks = blocks_a_},
                  {.first_row = 3, .rows = 0, .kv_tokens = 0, .blocks = {}},
                  {.first_row = 3, .rows = 1, .kv_tokens = 4, .blocks = blocks_b_}};
  }
  StepInputs Inputs() const {
    return {.tokens = tokens_,
            .positions = positions_,
            .sequences = sequences_,
            .logit_rows = logit_rows_,
            .kv = &arena_,
            .q_heads = 1};
  }
  std::vector<uint32_t> Words(const StepTables& tables, size_t at, size_t n) const {
    const auto words = tables.words().subspan(at, n);
    return {words.begin(), words.end()};
  }

  const std::vector<common::TokenId> tokens_ = {10, 11, 12, 13};
  const std::vector<int32_t> positions_ = {6, 7, 8, 3};
  const std::vector<int32_t> logit_rows_ = {2, 3};
  // More blocks than the keys need: those are not sent.
  const std::vector<common::BlockId> blocks_a_ = {common::BlockId(5), common::BlockId(9),
                                                  common::BlockId(1), common::BlockId(7)};
  const std::vector<common::BlockId> blocks_b_ = {common::BlockId(3)};
  std::vector<AttentionSequence> sequences_;
  kvstore::KvArena arena_;
};

TEST_F(StepTablesTest, HoldsTheStep) {
  StepTables tables;
  const std::vector<uint32_t> plan = {100, 101};
  ASSERT_OK(tables.Build(Inputs(), plan));
  const StepLayout& at = tables.layout();
  EXPECT_THAT(Words(tables, at.tokens, 4), ElementsAre(10, 11, 12, 13));
  EXPECT_THAT(Words(tables, at.positions, 4), ElementsAre(6, 7, 8, 3));
  EXPECT_THAT(Words(tables, at.row_sequence, 4), ElementsAre(0, 0, 0, 2));
  EXPECT_THAT(Words(tables, at.logit_rows, 2), ElementsAre(2, 3));
  EXPECT_THAT(Words(tables, at.first_row, 3), ElementsAre(0, 3, 3));
  EXPECT_THAT(Words(tables, at.num_rows, 3), ElementsAre(3, 0, 1));
  EXPECT_THAT(Words(tables, at.kv_tokens, 3), ElementsAre(9, 0, 4));
  EXPECT_THAT(Words(tables, at.first_block, 4), ElementsAre(0, 3, 3, 4));
  EXPECT_THAT(Words(tables, at.plan, 2), ElementsAre(100, 101));
  EXPECT_THAT(Words(tables, at.blocks, 4), ElementsAre(5, 9, 1, 3));
  EXPECT_EQ(tables.words().size(), at.blocks + 4);
  EXPECT_EQ(tables.words().size() % 4, 0U);
}

TEST_F(StepTablesTest, ShapeAloneDecidesWhereTablesLie) {
  StepTables tables;
  ASSERT_OK(tables.Build(Inputs(), {}));
  EXPECT_EQ(tables.layout(), LayoutOf(4, 2, 3, 0));
  for (const size_t table : {tables.layout().positions, tables.layout().plan,
                             tables.layout().blocks, tables.layout().first_block}) {
    EXPECT_EQ(table % 4, 0U);  // 16-byte addresses
  }
}

TEST_F(StepTablesTest, SampledRowsSayWhereTheirAdjustmentsAre) {
  const std::vector<RowSampling> rows = {{.draw = 7, .first_adjustment = 0, .adjustments = 1},
                                         {.draw = 9, .first_adjustment = 1, .adjustments = 2}};
  const std::vector<TokenAdjustment> adjustments = {
      {.token = 3, .bias = 1}, {.token = 4, .repetition = 2}, {.token = 5, .penalty = 3}};
  StepInputs inputs = Inputs();
  inputs.sampling = {rows, adjustments};
  StepTables tables;
  ASSERT_OK(tables.Build(inputs, {}));
  EXPECT_EQ(tables.layout(), LayoutOf(4, 2, 3, 0, 2));
  EXPECT_THAT(Words(tables, tables.layout().blocks, 4), ElementsAre(5, 9, 1, 3));
  const auto* const base = reinterpret_cast<const std::byte*>(tables.words().data());
  const auto* const sent =
      reinterpret_cast<const RowSampling*>(base + 4 * tables.layout().sampling);
  const auto* const all = reinterpret_cast<const TokenAdjustment*>(base);
  for (size_t r = 0; r < rows.size(); ++r) {
    EXPECT_EQ(sent[r].draw, rows[r].draw);
    EXPECT_EQ(sent[r].adjustments, rows[r].adjustments);
    for (uint32_t i = 0; i < rows[r].adjustments; ++i) {
      EXPECT_EQ(std::memcmp(&all[sent[r].first_adjustment + i],
                            &adjustments[rows[r].first_adjustment + i], sizeof(TokenAdjustment)),
                0);
    }
  }
  EXPECT_EQ(tables.words().size() * 4, (sent[1].first_adjustment + 2) * sizeof(TokenAdjustment))
      << "and nothing behind them";
}

TEST_F(StepTablesTest, RefusesWhatDoesNotFit) {
  StepTables tables;
  sequences_[2].first_row = 4;
  EXPECT_THAT(tables.Build(Inputs(), {}), StatusIs(absl::StatusCode::kInvalidArgument));
  sequences_[2] = {.first_row = 3, .rows = 1, .kv_tokens = 5, .blocks = blocks_b_};
  EXPECT_THAT(tables.Build(Inputs(), {}), StatusIs(absl::StatusCode::kInvalidArgument));
  sequences_[2] = {.first_row = 3, .rows = 1, .kv_tokens = 0, .blocks = blocks_b_};
  EXPECT_THAT(tables.Build(Inputs(), {}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(StepTablesTest, AnEmptyStepHasOnlyTheEndOfItsBlocks) {
  StepTables tables;
  const StepInputs none{.kv = &arena_};
  ASSERT_OK(tables.Build(none, {}));
  EXPECT_EQ(tables.words()[tables.layout().first_block], 0U);
}

}  // namespace
}  // namespace loopserve::worker::cuda
