#include "worker/backend/cpu/kernels_agree.h"

#include <gtest/gtest.h>

#include "worker/backend/cpu/cpu_isa.h"

namespace loopserve::worker::cpu {
namespace {

const Kernels& Portable() { return **SelectKernels("portable"); }

TEST(KernelsAgreeTest, KernelsAgreeWithThemselves) {
  EXPECT_TRUE(KernelsAgree(Portable(), Portable()));
}

// Two planes of eight bits are finer than bf16, by more than float rounding.
TEST(KernelsAgreeTest, CoarserActivationsAreNoticed) {
  const auto bf16 = SelectKernels("avx512-bf16");
  if (!bf16.ok()) GTEST_SKIP() << "*** NOT RUN: " << bf16.status().message() << " ***";
  EXPECT_FALSE(KernelsAgree(**bf16, Portable()));
}

TEST(KernelsAgreeTest, OneWrongOutputOfOneFormatIsNoticed) {
  Kernels wrong = Portable();
  wrong.matmul[kWeightTypes - 1] = [](const MatMulPart& part) {
    Portable().matmul[kWeightTypes - 1](part);
    part.out[(part.rows - 1) * part.out_stride + part.outputs - 1] *= 1.01f;
  };
  EXPECT_FALSE(KernelsAgree(wrong, Portable()));
  wrong.matmul[kWeightTypes - 1] = [](const MatMulPart& part) {
    Portable().matmul[kWeightTypes - 1](part);
    part.out[0] = __builtin_nanf("");
  };
  EXPECT_FALSE(KernelsAgree(wrong, Portable()));
}

}  // namespace
}  // namespace loopserve::worker::cpu
