#include "worker/backend/cuda/flashinfer/flash_plan.h"

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/flashinfer/plan_support.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;

constexpr FlashPrefillShape kShape = {32, 8, 128, 16};

FlashPath PathOf(const std::vector<Lengths>& lengths, const FlashPrefillShape& shape,
                 const FlashPrefillDevice& device, FlashPath prefer = FlashPath::kAuto) {
  PlannedStep step = StepOf(lengths, shape.block_tokens);
  auto plan = PlanFlashPrefill(shape, device, step.sequences, prefer, step.words);
  EXPECT_OK(plan);
  return plan.ok() ? plan->path : FlashPath::kAuto;
}

TEST(FlashPlan, LongStepsTakeTheFasterPathWhereThereIsOne) {
  EXPECT_EQ(PathOf({{2048, 2048}}, kShape, kHopper), FlashPath::kSm90);
  EXPECT_EQ(PathOf({{2048, 2048}}, kShape, kAmpere), FlashPath::kFa2);
  EXPECT_EQ(PathOf({{2048, 2048}}, kShape, {100, 148}), FlashPath::kFa2);
  FlashPrefillShape windowed = kShape;
  windowed.window = 512;
  EXPECT_EQ(PathOf({{2048, 2048}}, windowed, kHopper), FlashPath::kFa2);
  FlashPrefillShape wide = kShape;
  wide.head_dim = 256;
  EXPECT_EQ(PathOf({{2048, 2048}}, wide, kHopper), FlashPath::kFa2);
}

TEST(FlashPlan, ShortTurnsSplitTheirKeys) {
  EXPECT_EQ(PathOf({{40, 9000}}, kShape, kHopper), FlashPath::kFa2);
}

TEST(FlashPlan, APreferredPathIsTakenWhereItIsSupported) {
  EXPECT_EQ(PathOf({{2048, 2048}}, kShape, kHopper, FlashPath::kFa2), FlashPath::kFa2);
  EXPECT_EQ(PathOf({{40, 9000}}, kShape, kHopper, FlashPath::kSm90), FlashPath::kSm90);
  EXPECT_EQ(PathOf({{40, 9000}}, kShape, kAmpere, FlashPath::kSm90), FlashPath::kFa2);
}

TEST(FlashPlan, SequencesWithoutRowsTakeNoPart) {
  PlannedStep step = StepOf({{0, 100}, {20, 30}, {0, 0}}, 16, 5);
  ASSERT_OK_AND_ASSIGN(
      step.plan, PlanFlashPrefill(kShape, kHopper, step.sequences, FlashPath::kAuto, step.words));
  EXPECT_EQ(step.plan.sequences, 1);
  EXPECT_EQ(step.plan.rows, 20);
  EXPECT_EQ(step.plan.end_row, 25);
  EXPECT_EQ(step.at(step.plan.tables.blocks, 0), static_cast<int32_t>(step.blocks[1][0].value()));
  EXPECT_EQ(step.at(step.plan.tables.blocks, 1), static_cast<int32_t>(step.blocks[1][1].value()));
}

TEST(FlashPlan, AStepWithoutRowsHasNoTiles) {
  std::vector<uint32_t> words = {1, 2, 3};
  ASSERT_OK_AND_ASSIGN(const FlashPrefillPlan plan,
                       PlanFlashPrefill(kShape, kHopper, {}, FlashPath::kAuto, words));
  EXPECT_EQ(plan.tiles, 0);
  EXPECT_EQ(words.size(), 3U);
}

TEST(FlashPlan, TablesAreAppended) {
  PlannedStep step = StepOf({{20, 30}}, 16);
  step.words = {1, 2, 3};
  ASSERT_OK_AND_ASSIGN(
      step.plan, PlanFlashPrefill(kShape, kHopper, step.sequences, FlashPath::kAuto, step.words));
  EXPECT_EQ(step.words[2], 3U);
  EXPECT_EQ(step.plan.tables.blocks, 3U);
}

TEST(FlashPlan, RefusesWhatDoesNotFit) {
  const auto plan = [](const std::vector<Lengths>& lengths, const FlashPrefillShape& shape,
                       const FlashPrefillDevice& device, size_t missing_blocks) {
    PlannedStep step = StepOf(lengths, 16);
    for (AttentionSequence& s : step.sequences) {
      s.blocks = s.blocks.first(s.blocks.size() - missing_blocks);
    }
    return PlanFlashPrefill(shape, device, step.sequences, FlashPath::kAuto, step.words).status();
  };
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(plan({{20, 10}}, kShape, kHopper, 0), invalid);
  EXPECT_THAT(plan({{20, 33}}, kShape, kHopper, 1), invalid);
  EXPECT_THAT(plan({{20, 33}}, kShape, {75, 40}, 0), invalid);
  EXPECT_THAT(plan({{20, 33}}, {32, 8, 96, 16}, kHopper, 0), invalid);
  EXPECT_THAT(plan({{20, 33}}, {32, 7, 128, 16}, kHopper, 0), invalid);
}

}  // namespace
}  // namespace loopserve::worker::cuda
