#include "worker/backend/cuda/kernels/fp8_rows.h"

#include <cuda_fp8.h>

#include <bit>
#include <cmath>

#include "common/e4m3.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

class Fp8RowsTest : public LaunchTest {
 protected:
  cudaError_t ToE4m3(TensorView x, size_t offset = 0) {
    return LaunchToE4m3(x, {Memory<std::byte>(offset), Memory<float>(4096)}, stream_);
  }
};

// What kernels write by the device's own instruction is what the numbers' definition says.
TEST_F(Fp8RowsTest, CodesAreThoseOfCuda) {
  for (uint32_t high = 0; high < 65536; ++high) {
    for (const uint32_t low : {0U, 1U, 0x8000U, 0xffffU}) {
      const auto value = std::bit_cast<float>(high << 16 | low);
      const uint8_t code = common::FloatToE4m3(value);
      const auto theirs =
          static_cast<uint8_t>(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3));
      if (std::isnan(value)) {
        ASSERT_EQ(theirs & 0x7f, 0x7f);
        ASSERT_EQ(code & 0x7f, 0x7f);
      } else {
        ASSERT_EQ(code, theirs) << value;
      }
    }
  }
  for (int code = 0; code < 256; ++code) {
    __nv_fp8_e4m3 theirs;
    theirs.__x = static_cast<__nv_fp8_storage_t>(code);
    const float value = common::E4m3ToFloat(static_cast<uint8_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(theirs)));
    } else {
      EXPECT_EQ(value, static_cast<float>(theirs));
    }
  }
}

TEST_F(Fp8RowsTest, ToE4m3HasABlockForEachRow) {
  for (const ActivationType type : {kF32, kBf16}) {
    for (const int64_t rows : {1, 5, 2048}) {
      EXPECT_EQ(ToE4m3(View(rows, 4096, type)), cudaSuccess);
      const fake::Launch launch = Only("ToE4m3ILi8E");
      EXPECT_EQ(launch.grid.x, static_cast<unsigned>(rows));
      EXPECT_EQ(launch.block.x, 256u);
    }
  }
}

TEST_F(Fp8RowsTest, ToE4m3HasNoIdleWarpsAndReadsAnyColumns) {
  EXPECT_EQ(ToE4m3(View(3, 1)), cudaSuccess);
  EXPECT_EQ(Only("ToE4m3ILi1E").block.x, 32u);
  EXPECT_EQ(ToE4m3(View(3, 250)), cudaSuccess);
  EXPECT_EQ(Only("ToE4m3ILi1E").block.x, 32u);
  EXPECT_EQ(ToE4m3(View(3, 264)), cudaSuccess);
  EXPECT_EQ(Only("ToE4m3ILi8E").block.x, 64u);
  EXPECT_EQ(ToE4m3(View(3, 264, kBf16, 267)), cudaSuccess);
  Only("ToE4m3ILi1E");
}

TEST_F(Fp8RowsTest, ToE4m3RefusesCodesOffSixteenBytes) {
  EXPECT_EQ(ToE4m3(View(3, 64), 8), cudaErrorInvalidValue);
  ExpectNoLaunch();
}

TEST_F(Fp8RowsTest, NothingToDoLaunchesNothing) {
  EXPECT_EQ(ToE4m3(View(0, 16)), cudaSuccess);
  EXPECT_EQ(ToE4m3(View(3, 0)), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(Fp8RowsTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return ToE4m3(View(2, 16)); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
