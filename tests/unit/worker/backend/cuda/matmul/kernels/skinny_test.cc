#include "worker/backend/cuda/matmul/kernels/skinny.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

class SkinnyTest : public LaunchTest {
 protected:
  SkinnyProduct Product(int32_t x_rows, std::initializer_list<int64_t> outputs) const {
    SkinnyProduct product;
    product.x = Memory();
    product.x_stride = product.cols = 4096;
    product.x_rows = x_rows;
    for (const int64_t rows : outputs) {
      product.weights[product.count++] = {Memory(), rows, Memory(), rows, ActivationType::kF32};
    }
    return product;
  }
};

TEST_F(SkinnyTest, GemvHasAWarpForEachTwoOutputs) {
  for (int32_t rows = 1; rows <= kMaxGemvRows; ++rows) {
    EXPECT_EQ(LaunchGemvBf16(Product(rows, {4096, 1, 1024}), stream_), cudaSuccess);
    const fake::Launch launch = Only("GemvBf16ILi" + std::to_string(rows) + "E");
    // No warp has outputs of two matrices.
    ExpectCovers(launch.grid.x, launch.block.x / 32, 2048 + 1 + 512);
  }
  EXPECT_EQ(LaunchGemvBf16(Product(kMaxGemvRows + 1, {64}), stream_), cudaErrorInvalidValue);
  ExpectNoLaunch();
}

TEST_F(SkinnyTest, MmaHasABlockForEachRowTile) {
  for (const WeightType type :
       {WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0,
        WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K}) {
    for (const int32_t rows : {1, 8, 9, 16, 17, 32, 33, 64}) {
      EXPECT_EQ(LaunchSkinnyMma(type, Product(rows, {100, 16, 4096}), stream_), cudaSuccess);
      const fake::Launch launch = Only("SkinnyMma");
      EXPECT_EQ(launch.grid.x, rows <= 16 ? 7u + 1 + 256 : 4u + 1 + 128) << rows;
      EXPECT_EQ(launch.block.x, 256u);
    }
  }
}

TEST_F(SkinnyTest, ManyRowsAndOutputsLeaveEachWarpItsOwnOutputs) {
  for (const WeightType type : {WeightType::kBF16, WeightType::kQ4_K, WeightType::kQ8_0}) {
    for (const int32_t rows : {17, 32, 33, 64}) {
      // 131 + 1 blocks of 128 outputs, no block with outputs of both matrices.
      EXPECT_EQ(LaunchSkinnyMma(type, Product(rows, {131 * 128 - 5, 3}), stream_), cudaSuccess);
      const fake::Launch launch = Only(rows <= 32 ? "Li4ELi2ELi4E" : "Li8ELi2ELi4E");
      EXPECT_EQ(launch.grid.x, 132u);
      EXPECT_EQ(launch.block.x, 256u);
      EXPECT_EQ(LaunchSkinnyMma(type, Product(rows, {131 * 128}), stream_), cudaSuccess);
      EXPECT_EQ(Only(rows <= 32 ? "Li4ELi2ELi1E" : "Li8ELi2ELi1E").grid.x, 131u * 4)
          << "too few to keep every multiprocessor busy";
    }
    EXPECT_EQ(LaunchSkinnyMma(type, Product(16, {1 << 20}), stream_), cudaSuccess);
    Only("Li2ELi1ELi1E");
  }
}

TEST_F(SkinnyTest, E4m3IsOneMoreFormat) {
  for (const int32_t rows : {1, 8, 16, 17, 64}) {
    EXPECT_EQ(LaunchSkinnyMmaFp8(Product(rows, {100, 16, 4096}), stream_), cudaSuccess);
    EXPECT_EQ(Only("Fp8Codec").grid.x, rows <= 16 ? 7u + 1 + 256 : 4u + 1 + 128) << rows;
  }
  EXPECT_EQ(LaunchSkinnyMmaFp8(Product(kMaxSkinnyRows + 1, {64}), stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchSkinnyMmaFp8(Product(0, {64}), stream_), cudaSuccess);
  EXPECT_EQ(LaunchSkinnyMmaFp8(Product(2, {0}), stream_), cudaSuccess);
  ExpectNoLaunch();
  ExpectTellsErrors([&] { return LaunchSkinnyMmaFp8(Product(1, {64}), stream_); });
}

TEST_F(SkinnyTest, RefusesMoreRowsThanItHasRegistersForAndTypesOfFilesOnly) {
  EXPECT_EQ(LaunchSkinnyMma(WeightType::kBF16, Product(kMaxSkinnyRows + 1, {64}), stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchSkinnyMma(WeightType::kF16, Product(1, {64}), stream_), cudaErrorInvalidValue);
  ExpectNoLaunch();
}

TEST_F(SkinnyTest, NothingToDoLaunchesNothing) {
  for (const SkinnyProduct& product : {Product(0, {64}), Product(2, {}), Product(2, {0, 0})}) {
    EXPECT_EQ(LaunchGemvBf16(product, stream_), cudaSuccess);
    EXPECT_EQ(LaunchSkinnyMma(WeightType::kQ4_K, product, stream_), cudaSuccess);
  }
  ExpectNoLaunch();
}

TEST_F(SkinnyTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return LaunchGemvBf16(Product(1, {64}), stream_); });
  ExpectTellsErrors([&] { return LaunchSkinnyMma(WeightType::kQ4_0, Product(1, {64}), stream_); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
