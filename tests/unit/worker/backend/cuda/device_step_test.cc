#include "worker/backend/cuda/device_step.h"

#include <optional>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

class DeviceStepTest : public LaunchTest {
 protected:
  void SetUp() override {
    LaunchTest::SetUp();
    absl::StatusOr<Stream> stream = Stream::Create();
    ASSERT_OK(stream.status());
    own_ = *std::move(stream);
    arena_.shape = {.layers = 1, .kv_heads = 1, .head_dim = 8, .block_tokens = 4};
    step_.emplace();
  }
  void TearDown() override {
    step_.reset();
    own_ = Stream();
    LaunchTest::TearDown();
  }
  // A step of one sequence with `rows` new rows.
  absl::Status Upload(int32_t rows, const std::vector<uint32_t>& plan = {}) {
    tokens_.resize(static_cast<size_t>(rows));
    positions_.resize(tokens_.size());
    for (int32_t i = 0; i < rows; ++i) tokens_[static_cast<size_t>(i)] = 100 + i;
    for (int32_t i = 0; i < rows; ++i) positions_[static_cast<size_t>(i)] = i;
    blocks_.clear();
    for (uint32_t b = 0; b < static_cast<uint32_t>(rows + 3) / 4; ++b) blocks_.emplace_back(b + 7);
    sequence_ = {.rows = rows, .kv_tokens = rows, .blocks = blocks_};
    logit_rows_ = {rows - 1};
    return step_->Upload({.tokens = tokens_,
                          .positions = positions_,
                          .sequences = std::span(&sequence_, 1),
                          .logit_rows = logit_rows_,
                          .kv = &arena_,
                          .q_heads = 1},
                         plan, own_);
  }

  Stream own_;
  kvstore::KvArena arena_;
  std::optional<DeviceStep> step_;
  std::vector<common::TokenId> tokens_;
  std::vector<int32_t> positions_, logit_rows_;
  std::vector<common::BlockId> blocks_;
  AttentionSequence sequence_;
};

TEST_F(DeviceStepTest, TheTablesLieInDeviceMemory) {
  ASSERT_OK(Upload(6, {41, 42, 43}));
  EXPECT_TRUE(fake::IsDeviceMemory(step_->tokens(), 6 * 4));
  EXPECT_EQ(step_->tokens()[5], 105);
  EXPECT_EQ(step_->positions()[5], 5);
  EXPECT_EQ(step_->logit_rows()[0], 5);
  EXPECT_EQ(step_->plan()[2], 43u);
  const DeviceSequences& sequences = step_->sequences();
  EXPECT_EQ(sequences.count, 1);
  EXPECT_EQ(sequences.rows, 6);
  EXPECT_EQ(sequences.first_row[0], 0);
  EXPECT_EQ(sequences.num_rows[0], 6);
  EXPECT_EQ(sequences.kv_tokens[0], 6);
  EXPECT_EQ(sequences.first_block[1], 2);
  EXPECT_EQ(sequences.blocks[1], 8u);
  EXPECT_EQ(sequences.row_sequence[5], 0);
  EXPECT_TRUE(fake::IsDeviceMemory(sequences.blocks, 2 * 4));
}

TEST_F(DeviceStepTest, AStepIsOneCopyAndAllocatesNothingNew) {
  ASSERT_OK(Upload(6));
  const fake::Alive after_first = fake::alive();
  for (size_t steps = 1; steps <= 3; ++steps) {
    EXPECT_EQ(fake::Launches("CopyKernel").size(), steps);
    EXPECT_EQ(fake::calls("cudaEventRecord"), steps);
    ASSERT_OK(Upload(static_cast<int32_t>(6 * steps)));
  }
  EXPECT_EQ(fake::alive(), after_first);
  EXPECT_EQ(step_->generation(), 1u);
}

TEST_F(DeviceStepTest, EqualShapesFindTheirTablesAtEqualAddresses) {
  ASSERT_OK(Upload(6, {1, 2}));
  const uint32_t* const plan = step_->plan();
  const int32_t* const positions = step_->positions();
  ASSERT_OK(Upload(6, {3, 4}));
  EXPECT_EQ(step_->plan(), plan);
  EXPECT_EQ(step_->positions(), positions);
  EXPECT_EQ(plan[0], 3u);
}

TEST_F(DeviceStepTest, GrowingMovesTheTablesAndSaysSo) {
  ASSERT_OK(Upload(6));
  ASSERT_OK(Upload(6, std::vector<uint32_t>(1 << 20, 5)));
  EXPECT_EQ(step_->generation(), 2u);
  EXPECT_EQ(step_->plan()[(1 << 20) - 1], 5u);
  EXPECT_EQ(step_->tokens()[5], 105);
  EXPECT_EQ(fake::alive().pinned_allocations, 1u) << "the smaller ones are gone";
  ASSERT_OK(Upload(6));
  EXPECT_EQ(step_->generation(), 2u) << "and stays";
}

TEST_F(DeviceStepTest, ErrorsAreTold) {
  fake::FailCall("cudaMalloc", 1, cudaErrorMemoryAllocation);
  EXPECT_THAT(Upload(6), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("device")));
  fake::FailCall("cudaHostAlloc", 1, cudaErrorMemoryAllocation);
  EXPECT_THAT(Upload(6), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("pin")));
  fake::FailCall("cudaLaunchKernel", 1, cudaErrorIllegalAddress);
  EXPECT_EQ(Upload(6).code(), absl::StatusCode::kInternal);
  EXPECT_OK(Upload(6));
}

TEST_F(DeviceStepTest, AStepThatDoesNotFitItsSequencesIsRefused) {
  tokens_ = {1, 2};
  positions_ = {0, 1};
  sequence_ = {.rows = 2, .kv_tokens = 2, .blocks = {}};
  EXPECT_EQ(step_
                ->Upload({.tokens = tokens_,
                          .positions = positions_,
                          .sequences = std::span(&sequence_, 1),
                          .kv = &arena_,
                          .q_heads = 1},
                         {}, own_)
                .code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(fake::Launches(), ::testing::IsEmpty());
}

}  // namespace
}  // namespace loopserve::worker::cuda
