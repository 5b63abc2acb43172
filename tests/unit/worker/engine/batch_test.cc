#include "worker/engine/batch.h"

#include <algorithm>
#include <cmath>

#include "common/status_macros.h"
#include "gtest/gtest.h"
#include "kvstore/memory.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using kvstore::KvBlockPool;

class BatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    memory_ = kvstore::CreateHostMemory();
    ASSERT_OK_AND_ASSIGN(
        pool_,
        KvBlockPool::Create({.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 4}, 16,
                            {{.memory = memory_.get(), .first_kv_head = 0, .kv_heads = 1}}));
  }
  void Add(std::vector<common::TokenId> tokens, int64_t kv_tokens) {
    auto sequence = std::make_unique<Sequence>();
    sequence->ticket = TurnTicket(sequences_.size() + 1);
    sequence->kv_tokens = kv_tokens;
    for (size_t i = 0; i < (tokens.size() + 3) / 4; ++i) {
      sequence->blocks.push_back(*pool_->Allocate());
    }
    sequence->tokens = std::move(tokens);
    sequence->sampler.emplace(sequence->spec.sampling, 0, sequence->tokens);
    sequence->policy = *CreatePolicy("full");
    sequences_.push_back(std::move(sequence));
  }

  // The plan of these items; filled into one that held something else before.
  absl::StatusOr<std::unique_ptr<StepPlan>> Fill(const std::vector<StepItem>& items) {
    auto plan = std::make_unique<StepPlan>();
    plan->parts.resize(3);
    plan->parts[0].blocks.resize(7);
    plan->tokens = {7, 7, 7};
    plan->logit_rows = {2};
    plan->sampling.rows.resize(4);
    plan->sampling.adjustments.resize(4);
    RETURN_IF_ERROR(FillStepPlan(items, sequences_, ModelConfig(), 4, *plan));
    return plan;
  }

  std::unique_ptr<kvstore::Memory> memory_;
  std::unique_ptr<KvBlockPool> pool_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

TEST_F(BatchTest, AViewTellsWhatIsMissing) {
  Add({1, 2, 3, 4, 5, 6}, 4);
  const SequenceView view = ViewOf(*sequences_[0]);
  EXPECT_EQ(view.order, 1u);
  EXPECT_EQ(view.kv_tokens, 4);
  EXPECT_EQ(view.pending, 2);
  EXPECT_EQ(view.blocks, 2);
  EXPECT_FALSE(view.restoring);
}

TEST_F(BatchTest, PartsFollowOneAnother) {
  Add({1, 2, 3, 4, 5, 6}, 5);        // decodes
  Add({10, 11, 12, 13, 14, 15}, 1);  // a chunk in the middle
  ASSERT_OK_AND_ASSIGN(const auto plan, Fill({{0, 1, 0, true}, {1, 3, 0, false}}));
  EXPECT_EQ(plan->tokens, (std::vector<common::TokenId>{6, 11, 12, 13}));
  EXPECT_EQ(plan->positions, (std::vector<int32_t>{5, 1, 2, 3}));
  EXPECT_EQ(plan->logit_rows, (std::vector<int32_t>{0}));
  EXPECT_EQ(plan->sampling.rows.size(), 1u);
  EXPECT_TRUE(plan->sampling.adjustments.empty());
  ASSERT_EQ(plan->parts.size(), 2u);
  EXPECT_EQ(plan->parts[0].kv_tokens, 6);
  EXPECT_EQ(plan->parts[0].blocks.size(), 2u);
  EXPECT_EQ(plan->parts[1].kv_tokens, 4);
  EXPECT_EQ(plan->parts[1].blocks.size(), 1u) << "only what the rows can see";
  EXPECT_EQ(plan->parts[0].lines, nullptr);
  EXPECT_EQ(plan->parts[0].working_set, nullptr);
}

TEST_F(BatchTest, GuessesAreRowsWhoseLogitsAreWanted) {
  Add({1, 2, 3, 4, 1, 2, 3}, 6);
  sequences_[0]->guesser.emplace(16);
  sequences_[0]->guesser->Guess(sequences_[0]->tokens, 2);
  sequences_[0]->blocks.push_back(*pool_->Allocate());
  ASSERT_OK_AND_ASSIGN(const auto plan, Fill({{0, 3, 0, true, 2}}));
  EXPECT_EQ(plan->tokens, (std::vector<common::TokenId>{3, 4, 1}));
  EXPECT_EQ(plan->positions, (std::vector<int32_t>{6, 7, 8}));
  EXPECT_EQ(plan->logit_rows, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(plan->written.size(), 2u);
}

TEST_F(BatchTest, EachRowIsChosenFromAsIfTheGuessesBeforeItWereThere) {
  Add({1, 2, 3, 4, 1, 2}, 5);
  Sequence& sequence = *sequences_[0];
  SamplingParams& params = sequence.spec.sampling;
  params.temperature = 1;
  params.frequency_penalty = 1;
  params.min_tokens = 2;
  sequence.prompt_tokens = 5;
  sequence.stops = {9};
  sequence.sampler.emplace(params, 77, std::span<const common::TokenId>());
  sequence.guesser.emplace(16);
  sequence.guesser->Guess(sequence.tokens, 2);  // 3, 4
  ASSERT_OK_AND_ASSIGN(const auto plan, Fill({{0, 3, 0, true, 2}}));
  const SamplingView view = plan->sampling.view();
  ASSERT_EQ(view.rows.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(view.rows[i].draw, DrawAt(77, 6 + i)) << "of its own position";
    const auto banned =
        std::ranges::count(view.AdjustmentsOf(view.rows[i]), -HUGE_VALF, &TokenAdjustment::bias);
    EXPECT_EQ(banned, i < 1 ? 1 : 0) << "one token is generated, so the second row may stop";
    const auto counted =
        std::ranges::count(view.AdjustmentsOf(view.rows[i]), 1.0F, &TokenAdjustment::penalty);
    EXPECT_EQ(counted, static_cast<int64_t>(i)) << "the guesses before it";
  }
}

TEST_F(BatchTest, WhatIsWrittenIsPinned) {
  Add({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 4);
  {
    ASSERT_OK_AND_ASSIGN(const auto plan, Fill({{0, 6, 0, true}}));
    const auto& blocks = sequences_[0]->blocks;
    EXPECT_EQ(pool_->use_count(blocks[0].id()), 1u);
    EXPECT_EQ(pool_->use_count(blocks[1].id()), 2u);
    EXPECT_EQ(pool_->use_count(blocks[2].id()), 2u);
  }
  EXPECT_EQ(pool_->use_count(sequences_[0]->blocks[2].id()), 1u);
}

}  // namespace
}  // namespace loopserve::worker
