#include "worker/backend/cuda/kernels/rope.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

class RopeTest : public LaunchTest {
 protected:
  cudaError_t Rope(TensorView x, int32_t heads, int32_t pairs) {
    return LaunchRope(x, heads, Memory<int32_t>(), {.values = Memory(), .pairs = pairs}, stream_);
  }
};

TEST_F(RopeTest, HasAThreadForEachPairOfEachHead) {
  for (const int64_t rows : {1, 17, 70000}) {
    for (const int32_t heads : {1, 3, 32}) {
      for (const int32_t pairs : {1, 20, 64}) {
        EXPECT_EQ(Rope(View(rows, heads * 128, kBf16), heads, pairs), cudaSuccess);
        const fake::Launch rope = Only("RopeKernelI13__nv_bfloat16");
        EXPECT_EQ(rope.grid.x, static_cast<unsigned>(rows));
        ExpectCovers(rope.grid.y, rope.block.x, int64_t{heads} * pairs);
      }
    }
  }
  EXPECT_EQ(Rope(View(2, 128), 1, 64), cudaSuccess);
  Only("RopeKernelIf");
}

TEST_F(RopeTest, NothingToRotateLaunchesNothing) {
  EXPECT_EQ(Rope(View(0, 128), 1, 64), cudaSuccess);
  EXPECT_EQ(Rope(View(2, 128), 1, 0), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(RopeTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return Rope(View(2, 128), 1, 64); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
