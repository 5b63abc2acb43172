#include "worker/backend/cuda/flashinfer/flash_prefill.h"

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/flashinfer/plan_support.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::KvDtype;
using enum ActivationType;

class FlashPrefillTest : public LaunchTest {
 protected:
  FlashPrefillLaunch Planned(int32_t head_dim, const std::vector<Lengths>& lengths,
                             FlashPath path) {
    const FlashPrefillShape shape{
        .q_heads = 8, .kv_heads = 2, .head_dim = head_dim, .block_tokens = 16};
    step_ = StepOf(lengths, shape.block_tokens);
    auto plan = PlanFlashPrefill(shape, kHopper, step_.sequences, path, step_.words);
    EXPECT_OK(plan.status());
    plan_ = *plan;
    FlashPrefillLaunch launch;
    launch.plan = &plan_;
    launch.words = Memory<uint32_t>();
    launch.workspace = Memory();
    launch.arena = Memory<std::byte>();
    launch.kv = {.layers = 2, .kv_heads = 2, .head_dim = head_dim, .block_tokens = 16};
    launch.layer = 1;
    launch.q = View(plan_.end_row, int64_t{8} * head_dim, kBf16);
    launch.out = launch.q;
    launch.scale = 0.1F;
    return launch;
  }
  void ExpectRefused(const FlashPrefillLaunch& launch) {
    EXPECT_EQ(LaunchFlashPrefill(launch, stream_), cudaErrorInvalidValue);
    ExpectNoLaunch();
  }

  PlannedStep step_;
  FlashPrefillPlan plan_;
};

TEST_F(FlashPrefillTest, Fa2HasABlockForEachTileAndKvHead) {
  for (const int32_t head_dim : {64, 128, 256}) {
    for (const int64_t rows : {16, 3000}) {
      const FlashPrefillLaunch launch = Planned(head_dim, {{rows, rows}}, FlashPath::kFa2);
      ASSERT_EQ(plan_.partial_rows, 0);
      EXPECT_EQ(LaunchFlashPrefill(launch, stream_), cudaSuccess);
      const fake::Launch fa2 = Only("BatchPrefillWithPagedKVCacheKernel");
      EXPECT_EQ(fa2.grid.x, static_cast<unsigned>(plan_.tiles));
      EXPECT_EQ(fa2.grid.z, 2u);
      EXPECT_EQ(fa2.block.x * fa2.block.y * fa2.block.z, 128u);
      EXPECT_LE(fa2.dynamic_shared_bytes, 82u << 10);
    }
  }
}

TEST_F(FlashPrefillTest, SplitKeysAreMerged) {
  const FlashPrefillLaunch launch = Planned(128, {{20, 50000}}, FlashPath::kFa2);
  ASSERT_GT(plan_.partial_rows, 0);
  EXPECT_EQ(LaunchFlashPrefill(launch, stream_), cudaSuccess);
  const std::vector<fake::Launch> launches = Take();
  ASSERT_EQ(launches.size(), 2u);
  EXPECT_THAT(launches[0].kernel, ::testing::HasSubstr("BatchPrefillWithPagedKVCacheKernel"));
  EXPECT_THAT(launches[1].kernel, ::testing::HasSubstr("MergeKernel"));
  EXPECT_EQ(launches[1].grid.x, 20u);
  ExpectCovers(launches[1].grid.y, launches[1].block.x, 8 * 128 / 8);
  ExpectTellsErrors([&] { return LaunchFlashPrefill(launch, stream_); });
  ExpectTellsErrors([&] { return LaunchFlashPrefill(launch, stream_); }, 2);
}

TEST_F(FlashPrefillTest, Sm90HasABlockForEachMultiprocessor) {
  for (const int32_t head_dim : {64, 128}) {
    const FlashPrefillLaunch launch =
        Planned(head_dim, {{3000, 3000}, {100, 4000}}, FlashPath::kSm90);
    ASSERT_EQ(plan_.path, FlashPath::kSm90);
    EXPECT_EQ(LaunchFlashPrefill(launch, stream_), cudaSuccess);
    const fake::Launch sm90 = Only("PrefillWithKVCacheKernel");
    EXPECT_EQ(sm90.grid.x * sm90.grid.y * sm90.grid.z, 132u);
    EXPECT_GT(sm90.dynamic_shared_bytes, 48u << 10);
    plan_.multiprocessors = 100;  // as if planned for another device
    ExpectRefused(launch);
  }
}

TEST_F(FlashPrefillTest, NothingPlannedLaunchesNothing) {
  EXPECT_EQ(LaunchFlashPrefill(Planned(128, {}, FlashPath::kAuto), stream_), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(FlashPrefillTest, RefusesWhatDoesNotFitThePlan) {
  const FlashPrefillLaunch good = Planned(128, {{20, 50000}}, FlashPath::kFa2);
  const auto refuse = [&](auto change) {
    FlashPrefillLaunch launch = good;
    change(launch);
    ExpectRefused(launch);
  };
  refuse([](FlashPrefillLaunch& l) { l.plan = nullptr; });
  refuse([](FlashPrefillLaunch& l) { l.words = nullptr; });
  refuse([](FlashPrefillLaunch& l) { l.workspace = nullptr; });
  refuse([](FlashPrefillLaunch& l) { l.layer = 2; });
  refuse([](FlashPrefillLaunch& l) { l.kv.dtype = KvDtype::kInt8; });
  refuse([](FlashPrefillLaunch& l) { l.kv.kv_heads = 4; });
  refuse([](FlashPrefillLaunch& l) { l.q.rows -= 1; });
  refuse([](FlashPrefillLaunch& l) { l.q.type = kF32; });
  refuse([](FlashPrefillLaunch& l) { l.q = l.q.Cols(1, l.q.cols); });
  refuse([](FlashPrefillLaunch& l) { l.out.stride += 8; });
  refuse([](FlashPrefillLaunch& l) { l.arena += 8; });
}

TEST(FlashPrefillSupports, Bf16FromCapability80On) {
  EXPECT_TRUE(FlashPrefillSupports(128, KvDtype::kBf16, kBf16, 80));
  EXPECT_TRUE(FlashPrefillSupports(256, KvDtype::kBf16, kBf16, 90));
  EXPECT_FALSE(FlashPrefillSupports(80, KvDtype::kBf16, kBf16, 90));
  EXPECT_FALSE(FlashPrefillSupports(128, KvDtype::kInt8, kBf16, 90));
  EXPECT_FALSE(FlashPrefillSupports(128, KvDtype::kFp8, kBf16, 90));
  EXPECT_FALSE(FlashPrefillSupports(128, KvDtype::kBf16, kF32, 90));
  EXPECT_FALSE(FlashPrefillSupports(128, KvDtype::kBf16, kBf16, 75));
}

}  // namespace
}  // namespace loopserve::worker::cuda
