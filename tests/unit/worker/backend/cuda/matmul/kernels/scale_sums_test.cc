#include "worker/backend/cuda/matmul/kernels/scale_sums.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

class ScaleSumsTest : public LaunchTest {};

TEST_F(ScaleSumsTest, CoversAllColumns) {
  for (const ActivationType type : {kF32, kBf16}) {
    for (const int64_t cols : {1, 256, 257, 28672}) {
      EXPECT_EQ(LaunchScaleSums(View(7, cols, type), Memory(), Memory(), stream_), cudaSuccess);
      const fake::Launch launch = Only("ScaleSums");
      EXPECT_EQ(launch.grid.x, 7u);
      ExpectCovers(launch.grid.y, launch.block.x, cols);
    }
  }
}

TEST_F(ScaleSumsTest, NothingToDoLaunchesNothing) {
  EXPECT_EQ(LaunchScaleSums(View(0, 16), Memory(), Memory(), stream_), cudaSuccess);
  EXPECT_EQ(LaunchScaleSums(View(3, 0), Memory(), Memory(), stream_), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(ScaleSumsTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return LaunchScaleSums(View(2, 16), Memory(), Memory(), stream_); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
