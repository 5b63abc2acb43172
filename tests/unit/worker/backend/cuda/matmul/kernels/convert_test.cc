#include "worker/backend/cuda/matmul/kernels/convert.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

constexpr WeightType kQuantised[] = {WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0,
                                     WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K,
                                     WeightType::kQ6_K};

class ConvertTest : public LaunchTest {
 protected:
  cudaError_t Dequantize(WeightType type, int64_t cols, int64_t first, int64_t count) {
    return LaunchDequantize(type, Memory<std::byte>(), cols, first, count, Memory(), stream_);
  }
};

TEST_F(ConvertTest, ToBf16HasAThreadForEachEightValues) {
  for (const int64_t rows : {1, 5, 100000}) {
    for (const int64_t cols : {1, 8, 4095}) {
      const int64_t pitch = (cols + 7) / 8 * 8;
      EXPECT_EQ(LaunchToBf16(View(rows, cols), Memory(), pitch, stream_), cudaSuccess);
      const fake::Launch launch = Only("ToBf16");
      ExpectCovers(launch.grid.x, launch.block.x, rows * pitch / 8);
    }
  }
}

TEST_F(ConvertTest, ToBf16RefusesAPitchThatIsTooSmallOrUneven) {
  EXPECT_EQ(LaunchToBf16(View(2, 16), Memory(), 8, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchToBf16(View(2, 9), Memory(), 9, stream_), cudaErrorInvalidValue);
  ExpectNoLaunch();
}

TEST_F(ConvertTest, DequantizeHasAWarpForEachRecord) {
  for (const WeightType type : kQuantised) {
    for (const int64_t cols : {256, 4096, 14336}) {
      for (const int64_t count : {1, 16, 1000}) {
        EXPECT_EQ(Dequantize(type, cols, 32, count), cudaSuccess);
        const fake::Launch launch = Only("Dequantize");
        ExpectCovers(launch.grid.x, launch.block.x / 32, (count + 15) / 16 * (cols / 128));
      }
    }
  }
}

TEST_F(ConvertTest, DequantizeRefusesWhatHasNoRecords) {
  EXPECT_EQ(Dequantize(WeightType::kQ4_0, 256, 8, 16), cudaErrorInvalidValue);
  EXPECT_EQ(Dequantize(WeightType::kQ4_0, 40, 0, 16), cudaErrorInvalidValue);
  EXPECT_EQ(Dequantize(WeightType::kBF16, 256, 0, 16), cudaErrorInvalidValue);
  ExpectNoLaunch();
}

TEST_F(ConvertTest, NothingToDoLaunchesNothing) {
  EXPECT_EQ(LaunchToBf16(View(0, 16), Memory(), 16, stream_), cudaSuccess);
  EXPECT_EQ(Dequantize(WeightType::kQ4_0, 256, 0, 0), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(ConvertTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return LaunchToBf16(View(2, 16), Memory(), 16, stream_); });
  ExpectTellsErrors([&] { return Dequantize(WeightType::kQ6_K, 256, 0, 16); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
