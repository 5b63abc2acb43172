#include "worker/backend/cuda/kernels/elementwise.h"

#include <functional>

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

class ElementwiseTest : public LaunchTest {
 protected:
  struct Op {
    std::string_view kernel;  // with its op, as mangled
    std::function<cudaError_t(TensorView out, TensorView x)> launch;
  };
  std::vector<Op> Ops() {
    return {
        {"Sum", [&](TensorView out, TensorView x) { return LaunchAdd(out, x, stream_); }},
        {"SiluTimes", [&](TensorView out, TensorView x) { return LaunchSiluMul(out, x, stream_); }},
        {"Second",
         [&](TensorView out, TensorView x) {
           return LaunchGatherRows(x, Memory<int32_t>(), out, stream_);
         }},
        {"Sum", [&](TensorView out, TensorView) { return LaunchAddBias(out, Memory(), stream_); }}};
  }
};

TEST_F(ElementwiseTest, CoverEveryValueOfEveryRow) {
  for (const Op& op : Ops()) {
    for (const int64_t rows : {1, 5, 70000}) {
      for (const int64_t cols : {1, 255, 256, 2048, 2056, 14336}) {
        EXPECT_EQ(op.launch(View(rows, cols), View(rows, cols)), cudaSuccess);
        const bool wide = cols % 8 == 0;
        const fake::Launch launch = Only(wide ? "ZipKernelILi8E" : "ZipKernelILi1E");
        EXPECT_THAT(launch.kernel, ::testing::HasSubstr(op.kernel));
        EXPECT_EQ(launch.grid.x, static_cast<unsigned>(rows));
        ExpectCovers(launch.grid.y, int64_t{launch.block.x} * (wide ? 8 : 1), cols);
      }
    }
  }
}

TEST_F(ElementwiseTest, LoadOneByOneWhereRowsAreNotAligned) {
  for (const Op& op : Ops()) {
    EXPECT_EQ(op.launch(View(2, 65, kBf16).Cols(1, 64), View(2, 64)), cudaSuccess);
    Only("ZipKernelILi1E");
  }
}

TEST_F(ElementwiseTest, TakeBothTypes) {
  for (const Op& op : Ops()) {
    for (const ActivationType out : {kF32, kBf16}) {
      for (const ActivationType x : {kF32, kBf16}) {
        EXPECT_EQ(op.launch(View(3, 64, out), View(3, 64, x)), cudaSuccess);
        Only("ZipKernelILi8E");
      }
    }
  }
}

TEST_F(ElementwiseTest, SiluLeavesCodesRowByRow) {
  const Fp8Rows codes{Memory<std::byte>(), Memory<float>(4096)};
  for (const int64_t rows : {1, 2048}) {
    const TensorView gate = View(rows, 14336, kBf16);
    EXPECT_EQ(LaunchSiluMul(gate, gate, stream_, codes), cudaSuccess);
    EXPECT_EQ(Only("SiluMulRows").grid.x, static_cast<unsigned>(rows));
  }
  EXPECT_EQ(LaunchSiluMul(View(3, 65), View(3, 65), stream_, codes), cudaSuccess);
  const std::vector<fake::Launch> launches = Take();
  ASSERT_EQ(launches.size(), 2u);
  EXPECT_THAT(launches[0].kernel, ::testing::HasSubstr("ZipKernelILi1E"));
  EXPECT_THAT(launches[1].kernel, ::testing::HasSubstr("ToE4m3"));
  EXPECT_EQ(LaunchSiluMul(View(0, 64), View(0, 64), stream_, codes), cudaSuccess);
  ExpectNoLaunch();
  ExpectTellsErrors([&] { return LaunchSiluMul(View(3, 65), View(3, 65), stream_, codes); });
  ExpectTellsErrors([&] { return LaunchSiluMul(View(3, 64), View(3, 64), stream_, codes); });
}

TEST_F(ElementwiseTest, GatherWithoutIndicesIsACopy) {
  EXPECT_EQ(LaunchGatherRows(View(4, 64, kBf16), nullptr, View(4, 64), stream_), cudaSuccess);
  EXPECT_EQ(Only("Second").grid.x, 4u);
}

TEST_F(ElementwiseTest, NothingToDoLaunchesNothing) {
  for (const Op& op : Ops()) {
    EXPECT_EQ(op.launch(View(0, 64), View(0, 64)), cudaSuccess);
    EXPECT_EQ(op.launch(View(4, 0), View(4, 0)), cudaSuccess);
  }
  ExpectNoLaunch();
}

TEST_F(ElementwiseTest, TellTheRuntimesError) {
  for (const Op& op : Ops()) {
    ExpectTellsErrors([&] { return op.launch(View(2, 64), View(2, 64)); });
  }
}

}  // namespace
}  // namespace loopserve::worker::cuda
