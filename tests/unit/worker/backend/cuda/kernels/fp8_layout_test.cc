#include "worker/backend/cuda/kernels/fp8_layout.h"

#include <gtest/gtest.h>

namespace loopserve::worker::cuda {
namespace {

TEST(Fp8Layout, RowsLieOnSixteenBytesAndScalesOn256) {
  for (const int64_t cols : {1, 15, 16, 17, 576, 4095, 14336}) {
    EXPECT_EQ(Fp8Pitch(cols) % 16, 0);
    EXPECT_GE(Fp8Pitch(cols), cols);
    EXPECT_LT(Fp8Pitch(cols), cols + 16);
    for (const int64_t rows : {0, 1, 3, 4096}) {
      const size_t at = Fp8ScalesAt(rows, cols);
      EXPECT_EQ(at % 256, 0u);
      EXPECT_GE(at, static_cast<size_t>(rows * Fp8Pitch(cols)));
      EXPECT_EQ(Fp8Bytes(rows, cols), at + static_cast<size_t>(rows) * 4);
    }
  }
}

TEST(Fp8Layout, AnEightBModelsMatrixIsHalfOfBf16AndATouch) {
  const auto bf16 = size_t{14336} * 4096 * 2;
  EXPECT_LT(Fp8Bytes(14336, 4096), bf16 / 2 + bf16 / 1000);
}

}  // namespace
}  // namespace loopserve::worker::cuda
