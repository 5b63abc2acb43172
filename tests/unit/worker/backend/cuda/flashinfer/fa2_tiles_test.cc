// What FlashInfer's FA2 kernel does with the tables, done on the host: every row must see every key
// exactly once, and every partial result must be merged into its row.
#include <map>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/flashinfer/plan_support.h"

namespace loopserve::worker::cuda {
namespace {

PlannedStep Plan(const FlashPrefillShape& shape, const std::vector<Lengths>& lengths,
                 const FlashPrefillDevice& device = kAmpere) {
  PlannedStep step = StepOf(lengths, shape.block_tokens, 3, 2);
  auto plan = PlanFlashPrefill(shape, device, step.sequences, FlashPath::kFa2, step.words);
  EXPECT_OK(plan);
  if (plan.ok()) step.plan = *plan;
  return step;
}

// Keys seen by (row of the step, query head of a KV head) -> how often.
using Seen = std::map<std::pair<int64_t, int64_t>, std::vector<int>>;

// Partial results written: row of the partials -> row of the step.
using Partials = std::map<int64_t, int64_t>;

void RunTile(const PlannedStep& step, size_t i, Seen& seen, Partials& partials) {
  const FlashPrefillPlan& plan = step.plan;
  const FlashTables& tables = plan.tables;
  const int64_t group = plan.shape.q_heads / plan.shape.kv_heads;
  const auto s = static_cast<size_t>(step.at(tables.sequence, i));
  const int64_t tile = step.at(tables.tile, i), chunk = step.at(tables.chunk, i);
  const int64_t rows = step.at(tables.rows, s), kv = step.at(tables.kv_tokens, s);
  const int64_t left = plan.shape.window > 0 ? plan.shape.window - 1 : kv;
  const bool split = plan.partial_rows > 0;
  const int64_t size = step.at(tables.chunk_tokens, 0);
  const int64_t begin = std::max<int64_t>(0, kv + tile * plan.tile_rows / group - rows - left);
  const int64_t from = split ? std::min(begin + chunk * size, kv) : begin;
  const int64_t to = split ? std::min(begin + (chunk + 1) * size, kv) : kv;
  const int64_t chunks = (std::min(kv, left + plan.tile_rows) + size - 1) / size;
  EXPECT_LT(chunk, chunks);
  for (int64_t packed = tile * plan.tile_rows; packed < (tile + 1) * plan.tile_rows; ++packed) {
    const int64_t r = packed / group, head = packed % group;
    if (r >= rows) break;
    const int64_t row = step.at(tables.first_row, s) + r;
    std::vector<int>& keys = seen[{row, head}];
    keys.resize(static_cast<size_t>(kv));
    const int64_t position = kv - rows + r;
    for (int64_t k = std::max(from, position - left); k < std::min(to, position + 1); ++k) {
      ++keys[static_cast<size_t>(k)];
    }
    if (split && head == 0) {
      const int64_t partial = step.at(tables.first_out, s) + r * chunks + chunk;
      EXPECT_TRUE(partials.emplace(partial, row).second);
    }
  }
}

void CheckStep(const PlannedStep& step) {
  Seen seen;
  Partials partials;
  for (int32_t i = 0; i < step.plan.tiles; ++i) {
    RunTile(step, static_cast<size_t>(i), seen, partials);
  }
  const int64_t group = step.plan.shape.q_heads / step.plan.shape.kv_heads;
  for (const AttentionSequence& s : step.sequences) {
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t position = s.kv_tokens - s.rows + r;
      const int64_t window = step.plan.shape.window;
      for (int64_t head = 0; head < group; ++head) {
        const std::vector<int>& keys = seen[{s.first_row + r, head}];
        ASSERT_EQ(static_cast<int64_t>(keys.size()), s.kv_tokens);
        for (int64_t k = 0; k < s.kv_tokens; ++k) {
          const bool visible = k <= position && (window == 0 || k > position - window);
          ASSERT_EQ(keys[static_cast<size_t>(k)], visible ? 1 : 0) << r << " " << k;
        }
      }
    }
  }
  ASSERT_EQ(static_cast<int64_t>(partials.size()), step.plan.partial_rows);
  if (partials.empty()) return;
  const FlashTables& tables = step.plan.tables;
  for (size_t r = 0; r < static_cast<size_t>(step.plan.rows); ++r) {
    for (int64_t p = step.at(tables.merge_first, r); p < step.at(tables.merge_first, r + 1); ++p) {
      ASSERT_EQ(partials.at(p), step.at(tables.merge_row, r));
    }
  }
}

TEST(Fa2Tiles, EveryRowSeesItsKeysOnce) {
  for (const int32_t kv_heads : {1, 4, 8, 24}) {
    CheckStep(Plan({24, kv_heads, 128, 16}, {{300, 300}, {17, 2000}, {1, 1}, {130, 131}}));
  }
  CheckStep(Plan({24, 8, 256, 32}, {{300, 300}, {17, 500}}));
}

TEST(Fa2Tiles, AWindowNarrowsTheKeys) {
  for (const int32_t window : {1, 100, 700}) {
    CheckStep(Plan({8, 2, 128, 16, window}, {{100, 1500}, {7, 40}}));
    CheckStep(Plan({8, 8, 64, 16, window}, {{100, 1500}, {7, 40}}));
  }
}

TEST(Fa2Tiles, FewRowsOverManyKeysAreSplit) {
  const PlannedStep step = Plan({32, 8, 128, 16}, {{20, 5000}});
  CheckStep(step);
  EXPECT_GT(step.plan.tiles, 16);
  EXPECT_LE(int64_t{step.plan.tiles} * 8, 2 * kAmpere.multiprocessors);
  EXPECT_EQ(step.plan.workspace_bytes,
            static_cast<size_t>(step.plan.partial_rows) * 32 * (128 * 2 + 4));
}

TEST(Fa2Tiles, FullDevicesAreNotSplit) {
  const PlannedStep step = Plan({32, 8, 128, 16}, {{2000, 2000}});
  EXPECT_EQ(step.plan.partial_rows, 0);
  EXPECT_EQ(step.plan.tables.first_out, step.plan.tables.first_row);
  EXPECT_EQ(step.plan.tile_rows, 128);
  EXPECT_EQ(step.at(step.plan.tables.tile, 0), step.plan.tiles - 1);  // the longest first
}

}  // namespace
}  // namespace loopserve::worker::cuda
