#include "worker/engine/warm_up.h"

#include <gmock/gmock.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace loopserve::worker {
namespace {

using kvstore::KvBlockPool;
using ::loopserve::testing::FindPreset;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::WriteTempModel;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Writes its steps down.
class WrittenRanks final : public RankGroup {
 private:
  const bool warms_up_;
  ModelConfig config_;
  const std::unique_ptr<Backend> backend_ = *CreateBackend({.name = "reference", .threads = 1});
  std::unique_ptr<KvBlockPool> pool_;  // outlives the steps, which hold blocks of it

 public:
  WrittenRanks(bool warms_up, uint32_t blocks) : warms_up_(warms_up) {
    config_.context_tokens = 100;
    pool_ =
        *KvBlockPool::Create({.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 8}, blocks,
                             std::vector<KvBlockPool::Shard>{{&backend_->memory(), 0, 1}});
  }
  absl::StatusOr<StepResult> Run(std::shared_ptr<const StepPlan> plan) override {
    if (!errors.empty()) {
      const absl::Status error = errors.front();
      errors.erase(errors.begin());
      return error;
    }
    free_during_steps.push_back(pool_->free_blocks());
    steps.push_back(std::move(plan));
    return StepResult{};
  }
  int size() const override { return 1; }
  const ModelConfig& config() const override { return config_; }
  KvBlockPool& pool() override { return *pool_; }
  std::string backend_name() const override { return "written"; }
  std::string activation_format() const override { return "16"; }
  bool warms_up() const override { return warms_up_; }
  size_t resident_bytes() const override { return 0; }
  bool rank_up(int) const override { return true; }
  bool lost() const override { return is_lost; }

  std::vector<int64_t> Rows() const {
    std::vector<int64_t> rows;
    for (const auto& step : steps) rows.push_back(step->parts.at(0).rows);
    return rows;
  }

  std::vector<std::shared_ptr<const StepPlan>> steps;
  std::vector<uint32_t> free_during_steps;
  std::vector<absl::Status> errors;  // of the next steps
  bool is_lost = false;
};

TEST(WarmUp, IsAPrefillAndDecodesWhereThatHelps) {
  WrittenRanks ranks(true, 16);
  ASSERT_OK(WarmUp(ranks, 20, common::Logger::Null()));
  EXPECT_THAT(ranks.Rows(), ElementsAre(20, 1, 1, 1));
  for (const auto& step : ranks.steps) {
    const StepPlan::Part& part = step->parts.at(0);
    EXPECT_EQ(part.kv_tokens, 20);
    EXPECT_EQ(part.blocks.size(), 3u);
    EXPECT_EQ(step->written.size(), 3u) << "pinned as long as a rank may be at it";
    EXPECT_EQ(step->tokens, std::vector<common::TokenId>(static_cast<size_t>(part.rows), 0));
    EXPECT_EQ(step->positions.back(), 19);
    EXPECT_EQ(step->positions.front(), 20 - part.rows);
    EXPECT_THAT(step->logit_rows, ElementsAre(part.rows - 1));
  }
  EXPECT_THAT(ranks.free_during_steps, ElementsAre(13, 13, 13, 13));
  ranks.steps.clear();
  EXPECT_EQ(ranks.pool().free_blocks(), 16u);
}

TEST(WarmUp, IsOneRowElsewhere) {
  WrittenRanks ranks(false, 16);
  ASSERT_OK(WarmUp(ranks, 20, common::Logger::Null()));
  EXPECT_THAT(ranks.Rows(), ElementsAre(1));
  EXPECT_EQ(ranks.steps[0]->parts.at(0).kv_tokens, 1);
}

TEST(WarmUp, StaysWithinContextAndPool) {
  WrittenRanks small_pool(true, 2);
  ASSERT_OK(WarmUp(small_pool, 512, common::Logger::Null()));
  EXPECT_THAT(small_pool.Rows(), ElementsAre(16, 1, 1, 1));
  WrittenRanks small_context(true, 100);
  ASSERT_OK(WarmUp(small_context, 512, common::Logger::Null()));
  EXPECT_THAT(small_context.Rows(), ElementsAre(100, 1, 1, 1));
  WrittenRanks one_row(true, 1);
  ASSERT_OK(WarmUp(one_row, 1, common::Logger::Null()));
  EXPECT_THAT(one_row.Rows(), ElementsAre(1, 1, 1));
}

TEST(WarmUp, AStepThatFailsIsTold) {
  WrittenRanks ranks(true, 16);
  ranks.errors = {absl::InternalError("no kernel image")};
  EXPECT_THAT(WarmUp(ranks, 20, common::Logger::Null()),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("no kernel image")));
  EXPECT_EQ(ranks.pool().free_blocks(), 16u);
}

TEST(WarmUp, ARankThatStalledGetsAnotherChanceUnlessItIsLost) {
  const std::vector<absl::Status> stalled = {absl::DeadlineExceededError("rank 1 stalled"),
                                             absl::UnavailableError("rank 1 is not back")};
  WrittenRanks ranks(true, 16);
  ranks.errors = stalled;
  EXPECT_OK(WarmUp(ranks, 20, common::Logger::Null()));
  EXPECT_THAT(ranks.Rows(), ElementsAre(20, 1, 1, 1));
  WrittenRanks lost(true, 16);
  lost.errors = stalled;
  lost.is_lost = true;
  EXPECT_EQ(WarmUp(lost, 20, common::Logger::Null()), stalled[0]);
}

// On a model: what it leaves behind changes no answer.
TEST(WarmUp, LeavesNoTrace) {
  const auto file = *GgufFile::Open(WriteTempModel(*FindPreset("gqa")));
  const auto answer = [&](bool warm) {
    RankGroupOptions options;
    options.tp = 2;
    options.threads = 2;
    options.backend = "reference";
    options.block_tokens = 8;
    options.kv_device_bytes = 1 << 20;
    options.model = {.max_step_tokens = 32, .max_logit_rows = 4};
    const auto ranks = *RankGroup::Create(*file, options, common::Logger::Null());
    if (warm) {
      EXPECT_OK(WarmUp(*ranks, 32, common::Logger::Null()));
    }
    EXPECT_EQ(ranks->pool().free_blocks(), ranks->pool().num_blocks());
    auto plan = std::make_shared<StepPlan>();
    plan->written.push_back(*ranks->pool().Allocate());
    plan->parts.push_back({.rows = 3, .kv_tokens = 3, .blocks = {plan->written[0].id()}});
    plan->tokens = {5, 6, 7};
    plan->positions = {0, 1, 2};
    plan->logit_rows = {2};
    const absl::StatusOr<StepResult> result = ranks->Run(std::move(plan));
    EXPECT_OK(result.status());
    const TensorView logits = result->logits;
    return std::vector<float>(logits.data, logits.data + logits.cols);
  };
  EXPECT_EQ(answer(true), answer(false));
}

}  // namespace
}  // namespace loopserve::worker
