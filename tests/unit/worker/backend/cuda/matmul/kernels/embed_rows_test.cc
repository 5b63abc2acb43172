#include "worker/backend/cuda/matmul/kernels/embed_rows.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

class EmbedRowsTest : public LaunchTest {
 protected:
  cudaError_t Embed(WeightType type, int64_t cols, TensorView out) {
    const DeviceWeight table{type, Memory<std::byte>(), 1000, cols};
    return LaunchEmbedRows(table, Memory<int32_t>(), 0, out, stream_);
  }
};

TEST_F(EmbedRowsTest, CoversEveryColumnOfEveryToken) {
  for (const WeightType type :
       {WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0,
        WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K}) {
    for (const int64_t tokens : {1, 9, 70000}) {
      for (const int64_t cols : {256, 4096, 4352}) {
        EXPECT_EQ(Embed(type, cols, View(tokens, cols)), cudaSuccess);
        const fake::Launch launch = Only("EmbedRows");
        EXPECT_EQ(launch.grid.x, static_cast<unsigned>(tokens));
        ExpectCovers(launch.grid.y, launch.block.x, cols);
      }
    }
  }
}

TEST_F(EmbedRowsTest, RefusesWhatItHasNoKernelFor) {
  EXPECT_EQ(Embed(WeightType::kBF16, 64, View(2, 72)), cudaErrorInvalidValue);
  EXPECT_EQ(Embed(WeightType::kF16, 64, View(2, 64)), cudaErrorInvalidValue) << "of a file only";
  const DeviceWeight codes{
      .data = Memory<std::byte>(), .rows = 8, .cols = 64, .scales = Memory<float>()};
  EXPECT_EQ(LaunchEmbedRows(codes, Memory<int32_t>(), 0, View(2, 64), stream_),
            cudaErrorInvalidValue);
  ExpectNoLaunch();
}

TEST_F(EmbedRowsTest, NoTokensLaunchNothing) {
  EXPECT_EQ(Embed(WeightType::kBF16, 64, View(0, 64, kBf16)), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(EmbedRowsTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return Embed(WeightType::kQ8_0, 64, View(2, 64, kBf16)); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
