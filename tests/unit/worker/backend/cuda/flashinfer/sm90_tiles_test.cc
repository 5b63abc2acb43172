#include <algorithm>
#include <map>
#include <tuple>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/flashinfer/plan_support.h"

namespace loopserve::worker::cuda {
namespace {

PlannedStep Plan(const FlashPrefillShape& shape, const std::vector<Lengths>& lengths) {
  PlannedStep step = StepOf(lengths, shape.block_tokens, 3, 2);
  auto plan = PlanFlashPrefill(shape, kHopper, step.sequences, FlashPath::kSm90, step.words);
  EXPECT_OK(plan);
  if (plan.ok()) step.plan = *plan;
  return step;
}

TEST(Sm90Tiles, EveryRowOfEveryHeadIsComputedOnce) {
  for (const int32_t head_dim : {64, 128}) {
    const PlannedStep step =
        Plan({6, 2, head_dim, 16}, {{300, 300}, {17, 2000}, {1, 1}, {130, 131}});
    const FlashTables& tables = step.plan.tables;
    EXPECT_EQ(step.at(tables.first_work, 0), 0);
    EXPECT_EQ(step.at(tables.first_work, kHopper.multiprocessors), step.plan.tiles);
    std::map<std::tuple<int32_t, int32_t>, int> computed;  // head, row of the step
    for (size_t i = 0; i < static_cast<size_t>(step.plan.tiles); ++i) {
      const auto s = static_cast<size_t>(step.at(tables.sequence, i));
      EXPECT_EQ(step.at(tables.first_row, i), step.sequences[s].first_row);
      EXPECT_EQ(step.at(tables.rows, i), step.sequences[s].rows);
      EXPECT_EQ(step.at(tables.kv_tokens, i), step.sequences[s].kv_tokens);
      EXPECT_EQ(step.at(tables.blocks + static_cast<size_t>(step.at(tables.first_block, i)), 0),
                static_cast<int32_t>(step.blocks[s][0].value()));
      const int32_t first = step.at(tables.tile, i) * step.plan.tile_rows;
      EXPECT_LT(first, step.at(tables.rows, i));
      for (int32_t r = first; r < std::min(first + step.plan.tile_rows, step.at(tables.rows, i));
           ++r) {
        ++computed[{step.at(tables.head, i), step.at(tables.first_row, i) + r}];
      }
    }
    EXPECT_EQ(computed.size(), 6U * (300 + 17 + 1 + 130));
    for (const auto& [row, times] : computed) EXPECT_EQ(times, 1);
  }
}

TEST(Sm90Tiles, BlocksAreEquallyBusy) {
  const PlannedStep step = Plan({32, 8, 128, 16}, {{8192, 8192}});
  int64_t least = INT64_MAX, most = 0;
  for (size_t block = 0; block < 132; ++block) {
    int64_t load = 0;
    const auto end = static_cast<size_t>(step.at(step.plan.tables.first_work, block + 1));
    for (auto i = static_cast<size_t>(step.at(step.plan.tables.first_work, block)); i < end; ++i) {
      load += (step.at(step.plan.tables.tile, i) + 1 + 2) * 128;
    }
    least = std::min(least, load);
    most = std::max(most, load);
  }
  EXPECT_LT(static_cast<double>(most), 1.05 * static_cast<double>(least));
}

}  // namespace
}  // namespace loopserve::worker::cuda
