#include "worker/backend/cuda/kernels/norm.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

class NormTest : public LaunchTest {
 protected:
  cudaError_t Norm(TensorView x, TensorView out) {
    return LaunchRmsNorm(x, Memory(), 1e-5F, out, stream_);
  }
  cudaError_t AddNorm(TensorView residual, TensorView x, TensorView out) {
    return LaunchAddRmsNorm(residual, x, Memory(), 1e-5F, out, stream_);
  }
};

TEST_F(NormTest, HasABlockForEachRow) {
  // More rows than a grid's second dimension has.
  for (const int64_t rows : {1, 3, 70000}) {
    EXPECT_EQ(Norm(View(rows, 4096), View(rows, 4096, kBf16)), cudaSuccess);
    const fake::Launch norm = Only("NormKernelILi8ELb0Ef");
    EXPECT_EQ(norm.grid.x, static_cast<unsigned>(rows));
    EXPECT_EQ(norm.block.x, 512u);  // eight values to a thread
    EXPECT_EQ(AddNorm(View(rows, 4096), View(rows, 4096, kBf16), View(rows, 4096, kBf16)),
              cudaSuccess);
    const fake::Launch add = Only("NormKernelILi8ELb1E13__nv_bfloat16");
    EXPECT_EQ(add.grid.x, static_cast<unsigned>(rows));
    EXPECT_EQ(add.block.x, 512u);
  }
}

TEST_F(NormTest, ThreadsAreWholeWarpsWhateverTheColumns) {
  for (const int64_t cols : {1, 31, 100, 1000, 5000, 100000}) {
    EXPECT_EQ(Norm(View(2, cols), View(2, cols)), cudaSuccess);
    const fake::Launch norm = Only("NormKernel");
    EXPECT_EQ(norm.block.x % 32, 0u) << cols;
    EXPECT_LE(norm.block.x, 1024u) << cols;
    EXPECT_GE(norm.block.x, 32u) << cols;
  }
}

TEST_F(NormTest, LoadsOneByOneWhereRowsAreNotAligned) {
  const TensorView wide = View(2, 64);
  for (const TensorView& odd : {View(2, 64, kF32, 66), View(2, 72).Cols(1, 64)}) {
    EXPECT_EQ(Norm(odd, wide), cudaSuccess);
    Only("NormKernelILi1ELb0E");
    EXPECT_EQ(Norm(wide, odd), cudaSuccess);
    Only("NormKernelILi1ELb0E");
    EXPECT_EQ(AddNorm(odd, wide, wide), cudaSuccess);
    Only("NormKernelILi1ELb1E");
  }
  EXPECT_EQ(LaunchRmsNorm(wide, Memory() + 1, 0, wide, stream_), cudaSuccess);
  Only("NormKernelILi1ELb0E");
}

TEST_F(NormTest, LeavesCodesInTheSameKernelWhereVectorsFit) {
  const Fp8Rows codes{Memory<std::byte>(), Memory<float>(4096)};
  const TensorView out = View(3, 4096, kBf16);
  EXPECT_EQ(LaunchRmsNorm(View(3, 4096), Memory(), 0, out, stream_, codes), cudaSuccess);
  Only("NormKernelILi8ELb0Ef13__nv_bfloat16Lb1E");
  EXPECT_EQ(LaunchAddRmsNorm(View(3, 4096), out, Memory(), 0, out, stream_, codes), cudaSuccess);
  EXPECT_THAT(Only("NormKernelILi8ELb1E13__nv_bfloat16").kernel, ::testing::HasSubstr("Lb1EEEv"));
}

TEST_F(NormTest, LeavesCodesInAKernelOfTheirOwnElsewhere) {
  const Fp8Rows codes{Memory<std::byte>(), Memory<float>(4096)};
  EXPECT_EQ(LaunchRmsNorm(View(3, 65), Memory(), 0, View(3, 65), stream_, codes), cudaSuccess);
  const std::vector<fake::Launch> launches = Take();
  ASSERT_EQ(launches.size(), 2u);
  EXPECT_THAT(launches[1].kernel, ::testing::HasSubstr("ToE4m3"));
  EXPECT_EQ(LaunchRmsNorm(View(0, 65), Memory(), 0, View(0, 65), stream_, codes), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(NormTest, NothingToDoLaunchesNothing) {
  EXPECT_EQ(Norm(View(0, 64), View(0, 64)), cudaSuccess);
  EXPECT_EQ(Norm(View(4, 0), View(4, 0)), cudaSuccess);
  EXPECT_EQ(AddNorm(View(0, 64), View(0, 64), View(0, 64)), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(NormTest, TellsTheRuntimesError) {
  const TensorView x = View(2, 64);
  ExpectTellsErrors([&] { return Norm(x, x); });
  ExpectTellsErrors([&] { return AddNorm(x, x, x); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
