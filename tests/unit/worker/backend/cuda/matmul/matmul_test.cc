#include "worker/backend/cuda/matmul/matmul.h"

#include <optional>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "tests/unit/worker/backend/cuda/use_fake_lt.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;
using enum ActivationType;

constexpr int64_t kCols = 512;

class MatMulTest : public LaunchTest {
 protected:
  MatMulRunner Runner(CublasLt* lt, int64_t quantised_rows = 0) const {
    // No kernel runs: the workspace may lie in less memory than it says.
    return {lt, {.rows = 64, .cols = kCols, .quantised_rows = quantised_rows}, Memory<std::byte>()};
  }
  DeviceWeight Weight(int64_t rows, WeightType type = WeightType::kBF16) const {
    return {type, Memory<std::byte>(), rows, kCols};
  }
  DeviceWeight Fp8Weight(int64_t rows) const {
    DeviceWeight weight = Weight(rows);
    weight.scales = Memory<float>(4096);
    return weight;
  }
  absl::Status Run(MatMulRunner& runner, TensorView x, const std::vector<DeviceWeight>& weights) {
    return runner.Run(x, weights, Outs(x, weights), stream_);
  }
  std::vector<TensorView> Outs(TensorView x, const std::vector<DeviceWeight>& weights) const {
    std::vector<TensorView> outs;
    for (const DeviceWeight& weight : weights) outs.push_back(View(x.rows, weight.rows));
    return outs;
  }
  std::vector<std::string> Kernels() {
    std::vector<std::string> kernels;
    for (const fake::Launch& launch : Take()) kernels.push_back(launch.kernel);
    return kernels;
  }
};

TEST_F(MatMulTest, AFewRowsOfBf16AreAGemv) {
  MatMulRunner runner = Runner(nullptr);
  for (const int64_t rows : {1, 2}) {
    EXPECT_OK(Run(runner, View(rows, kCols, kBf16), {Weight(4096), Weight(1024)}));
    ExpectCovers(Only("GemvBf16").grid.x, 8, 2048 + 512);
  }
  EXPECT_OK(Run(runner, View(3, kCols, kBf16), {Weight(4096)}));
  Only("SkinnyMma");
}

TEST_F(MatMulTest, WeightsOfATypeShareALaunchFourAtATime) {
  MatMulRunner runner = Runner(nullptr);
  EXPECT_OK(Run(runner, View(3, kCols, kBf16), std::vector(6, Weight(64))));
  const std::vector<fake::Launch> launches = Take();
  ASSERT_EQ(launches.size(), 2u);
  EXPECT_EQ(launches[0].grid.x, 16u);
  EXPECT_EQ(launches[1].grid.x, 8u);
  EXPECT_OK(Run(runner, View(3, kCols, kBf16),
                {Weight(64, WeightType::kQ4_K), Weight(64, WeightType::kQ6_K),
                 Weight(64, WeightType::kQ4_K), Weight(0, WeightType::kQ8_0)}));
  EXPECT_THAT(Kernels(), ::testing::SizeIs(2)) << "one for each type that has outputs";
}

TEST_F(MatMulTest, WithoutTheLibraryManyRowsComeInParts) {
  MatMulRunner runner = Runner(nullptr);
  EXPECT_OK(Run(runner, View(200, kCols, kBf16), {Weight(64)}));
  EXPECT_THAT(Kernels(), ::testing::SizeIs(4));
}

TEST_F(MatMulTest, XIsRoundedFirstWhereTheKernelsCannotReadIt) {
  MatMulRunner runner = Runner(nullptr);
  for (const TensorView& x : {View(3, kCols), View(3, kCols, kBf16, kCols + 1),
                              View(3, kCols + 8, kBf16).Cols(1, kCols)}) {
    EXPECT_OK(Run(runner, x, {Weight(64)}));
    EXPECT_THAT(Kernels(), ::testing::ElementsAre(HasSubstr("ToBf16"), HasSubstr("SkinnyMma")));
  }
  // The scratch holds 64 rows.
  EXPECT_OK(Run(runner, View(65, kCols), {Weight(64)}));
  EXPECT_THAT(Kernels(), ::testing::SizeIs(4));
}

TEST_F(MatMulTest, NothingToDoLaunchesNothing) {
  MatMulRunner runner = Runner(nullptr);
  EXPECT_OK(Run(runner, View(0, kCols), {Weight(64)}));
  EXPECT_OK(Run(runner, View(3, kCols, kBf16), {}));
  EXPECT_OK(Run(runner, View(3, kCols, kBf16), {Weight(0)}));
  ExpectNoLaunch();
}

TEST_F(MatMulTest, RefusesShapesThatDoNotFit) {
  MatMulRunner runner = Runner(nullptr);
  const DeviceWeight weight = Weight(64);
  const TensorView x = View(3, kCols, kBf16);
  const auto refused = [&](TensorView from, DeviceWeight by, TensorView to) {
    EXPECT_EQ(runner.Run(from, std::span(&by, 1), std::span(&to, 1), stream_).code(),
              absl::StatusCode::kInvalidArgument);
  };
  refused(View(3, kCols + 8, kBf16), weight, View(3, 64));
  refused(x, weight, View(2, 64));
  refused(x, weight, View(3, 65));
  refused(x, weight, View(3, 64, kF32, 32));
  refused(x, Weight(64, WeightType::kF16), View(3, 64));
  const DeviceWeight wide{WeightType::kBF16, Memory<std::byte>(), 64, kCols * 100};
  const TensorView out = View(3, 64);
  EXPECT_THAT(runner.Run(View(3, kCols * 100), std::span(&wide, 1), std::span(&out, 1), stream_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fewer columns")));
  ExpectNoLaunch();
}

TEST_F(MatMulTest, TellsTheRuntimesError) {
  MatMulRunner runner = Runner(nullptr);
  for (const size_t nth : {1, 2}) {
    fake::FailCall("cudaLaunchKernel", nth, cudaErrorLaunchFailure);
    EXPECT_THAT(Run(runner, View(1, kCols), {Weight(64)}),
                StatusIs(absl::StatusCode::kInternal, HasSubstr("cudaErrorLaunchFailure")));
    EXPECT_EQ(Take().size(), nth - 1);
  }
}

class MatMulByLibraryTest : public MatMulTest {
 protected:
  void SetUp() override {
    MatMulTest::SetUp();
    absl::StatusOr<CublasLt> lt = CublasLt::Load();
    ASSERT_OK(lt.status());
    lt_ = *std::move(lt);
  }
  MatMulRunner Fp8Runner(const MatMulPaths& paths = {}) {
    return {&*lt_, {.rows = 64, .cols = kCols, .fp8 = true}, Memory<std::byte>(), paths};
  }
  FakeLt& library_ = UseFakeLt();
  std::optional<CublasLt> lt_;
};

TEST_F(MatMulByLibraryTest, ManyRowsAndManyOutputsAreTheLibrarys) {
  MatMulRunner runner = Runner(&*lt_);
  EXPECT_OK(Run(runner, View(64, kCols, kBf16), {Weight(64)}));
  EXPECT_OK(Run(runner, View(3, kCols, kBf16), {Weight(8192)}));
  EXPECT_EQ(library_.matmuls, 2u);
  ExpectNoLaunch();
  EXPECT_OK(Run(runner, View(3, kCols, kBf16), {Weight(64), Weight(8192)}));
  Only("SkinnyMma");
  EXPECT_EQ(library_.matmuls, 3u);
}

TEST_F(MatMulByLibraryTest, QuantisedWeightsAreDecodedForIt) {
  MatMulRunner runner = Runner(&*lt_, 1000);
  EXPECT_OK(Run(runner, View(64, kCols, kBf16), {Weight(1000, WeightType::kQ4_K)}));
  Only("SkinnyMma");
  EXPECT_OK(Run(runner, View(65, kCols, kBf16), {Weight(1000, WeightType::kQ4_K)}));
  Only("Dequantize");
  // What does not fit the scratch comes in parts.
  EXPECT_OK(Run(runner, View(65, kCols, kBf16), {Weight(2500, WeightType::kQ4_K)}));
  EXPECT_THAT(Kernels(), ::testing::SizeIs(3));
  EXPECT_EQ(library_.matmuls, 1u + 3);
  MatMulRunner none = Runner(&*lt_);
  EXPECT_THAT(Run(none, View(65, kCols, kBf16), {Weight(64, WeightType::kQ4_K)}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no quantised matrix")));
}

TEST_F(MatMulByLibraryTest, WhatItRefusesTakesTheKernelsOfFewRows) {
  MatMulRunner runner = Runner(&*lt_);
  library_.algorithms = 0;
  const std::vector<DeviceWeight> weights = {Weight(64)};
  const TensorView x = View(130, kCols, kBf16);
  EXPECT_OK(Run(runner, x, weights));
  EXPECT_THAT(Kernels(), ::testing::SizeIs(3));
  library_.algorithms = 1;
  library_.matmul = CUBLAS_STATUS_EXECUTION_FAILED;
  EXPECT_EQ(Run(runner, View(200, kCols, kBf16), weights).code(), absl::StatusCode::kInternal);
}

TEST_F(MatMulByLibraryTest, FewRowsMeetE4m3WeightsAsTheyAre) {
  MatMulRunner runner = Fp8Runner();
  for (const int64_t rows : {1, 16}) {
    EXPECT_OK(Run(runner, View(rows, kCols, kBf16), {Fp8Weight(4096), Fp8Weight(8192)}));
    EXPECT_THAT(Only("SkinnyMma").kernel, HasSubstr("Fp8Codec"));
  }
  EXPECT_OK(Run(runner, View(1, kCols, kBf16), {Fp8Weight(64), Weight(64)}));
  EXPECT_THAT(Kernels(), ::testing::UnorderedElementsAre(HasSubstr("Gemv"), HasSubstr("Fp8Codec")));
  EXPECT_EQ(library_.matmuls, 0u);
}

TEST_F(MatMulByLibraryTest, ManyRowsBecomeE4m3OnceForAllWeightsOfACall) {
  MatMulRunner runner = Fp8Runner();
  EXPECT_OK(Run(runner, View(64, kCols, kBf16), {Fp8Weight(64), Weight(64), Fp8Weight(32)}));
  EXPECT_EQ(Only("ToE4m3").grid.x, 64u);
  EXPECT_EQ(library_.matmuls, 3u);
  EXPECT_EQ(library_.inputs, static_cast<uint64_t>(kCols));
  EXPECT_EQ(library_.weight.type, CUDA_R_8F_E4M3);
  EXPECT_EQ(library_.weight.scales, Memory<float>(4096));
  EXPECT_EQ(library_.weight.scale_mode, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
}

TEST_F(MatMulByLibraryTest, E4m3ColumnsThatDoNotFillSixteenBytesArePadded) {
  MatMulRunner runner = Fp8Runner();
  DeviceWeight weight = Fp8Weight(64);
  weight.cols = 13;
  const TensorView out = View(17, 64);
  EXPECT_OK(runner.Run(View(17, 13), std::span(&weight, 1), std::span(&out, 1), stream_));
  EXPECT_THAT(Kernels(), ::testing::ElementsAre(HasSubstr("ToBf16"), HasSubstr("ToE4m3")));
  EXPECT_EQ(library_.inputs, 16u);
  EXPECT_EQ(library_.x.pitch, 16);
}

TEST_F(MatMulByLibraryTest, MoreRowsOfE4m3ThanTheScratchHoldsComeInParts) {
  MatMulRunner runner = Fp8Runner();
  EXPECT_OK(Run(runner, View(150, kCols, kBf16), {Fp8Weight(64)}));
  EXPECT_THAT(Kernels(), ::testing::SizeIs(3));
  EXPECT_EQ(library_.matmuls, 3u);
  MatMulRunner none = Runner(&*lt_);
  EXPECT_EQ(Run(none, View(64, kCols, kBf16), {Fp8Weight(64)}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(MatMulByLibraryTest, CodesThatAKernelHasLeftServeTheNextRunOfThatX) {
  MatMulRunner runner = Fp8Runner();
  const TensorView x = View(64, kCols, kBf16);
  const Fp8Rows codes = runner.CodesFor(x);
  EXPECT_NE(codes.codes, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(codes.codes) % 256, 0u);
  EXPECT_OK(Run(runner, x, {Fp8Weight(64)}));
  ExpectNoLaunch();
  EXPECT_EQ(library_.x.scales, codes.scales);
  EXPECT_OK(Run(runner, x, {Fp8Weight(64)}));
  Only("ToE4m3");  // once: x may have changed
  EXPECT_NE(runner.CodesFor(x).codes, nullptr);
  runner.ForgetCodes();
  EXPECT_OK(Run(runner, x, {Fp8Weight(64)}));
  Only("ToE4m3");
  EXPECT_NE(runner.CodesFor(x).codes, nullptr);
  EXPECT_OK(Run(runner, x.Rows(0, 63), {Fp8Weight(64)}));
  Only("ToE4m3");  // of another view
}

TEST_F(MatMulByLibraryTest, NobodyLeavesCodesThatNoProductCouldRead) {
  MatMulRunner runner = Fp8Runner();
  EXPECT_EQ(runner.CodesFor(View(16, kCols, kBf16)).codes, nullptr) << "few rows";
  EXPECT_EQ(runner.CodesFor(View(65, kCols, kBf16)).codes, nullptr) << "more than at once";
  EXPECT_EQ(runner.CodesFor(View(64, kCols + 8, kBf16)).codes, nullptr);
  EXPECT_EQ(runner.CodesFor(View(64, kCols)).codes, nullptr) << "f32";
  MatMulRunner none = Runner(&*lt_);
  EXPECT_EQ(none.CodesFor(View(64, kCols, kBf16)).codes, nullptr);
}

TEST_F(MatMulByLibraryTest, WhereTheLibraryHasNoScalesAKernelHas) {
  for (const bool asks : {true, false}) {
    library_.scales_rows = !asks;
    MatMulRunner runner = Fp8Runner({.library_scales = asks});
    EXPECT_OK(Run(runner, View(64, kCols, kBf16), {Fp8Weight(64), Fp8Weight(48)}));
    EXPECT_THAT(Kernels(), ::testing::ElementsAre(HasSubstr("ToE4m3"), HasSubstr("ScaleSums"),
                                                  HasSubstr("ScaleSums")));
    EXPECT_EQ(library_.weight.type, CUDA_R_8F_E4M3);
    EXPECT_EQ(library_.weight.scales, nullptr);
  }
  EXPECT_EQ(library_.matmuls, 4u);
}

TEST_F(MatMulByLibraryTest, E4m3ThatItRefusesTakesTheKernelsOfFewRows) {
  MatMulRunner runner = Fp8Runner();
  EXPECT_OK(Run(runner, View(64, kCols, kBf16), {Fp8Weight(63)})) << "no whole 16 outputs";
  EXPECT_THAT(Kernels(), ::testing::ElementsAre(HasSubstr("ToE4m3"), HasSubstr("Fp8Codec")));
  EXPECT_EQ(library_.matmuls, 0u);
  library_.matmul = CUBLAS_STATUS_INVALID_VALUE;
  EXPECT_OK(Run(runner, View(64, kCols, kBf16), {Fp8Weight(64)}));
  EXPECT_THAT(Kernels(), ::testing::ElementsAre(HasSubstr("ToE4m3"), HasSubstr("Fp8Codec")));
  library_.matmul = CUBLAS_STATUS_EXECUTION_FAILED;
  EXPECT_EQ(Run(runner, View(64, kCols, kBf16), {Fp8Weight(64)}).code(),
            absl::StatusCode::kInternal);
}

TEST_F(MatMulByLibraryTest, ASecondRunSearchesNoMore) {
  MatMulRunner runner = Runner(&*lt_, 1000);
  const std::vector<DeviceWeight> weights = {Weight(64), Weight(2500, WeightType::kQ6_K)};
  const TensorView x = View(100, kCols, kBf16);
  EXPECT_OK(Run(runner, x, weights));
  const size_t searches = library_.searches;
  EXPECT_GE(searches, 2u);
  EXPECT_OK(Run(runner, x, weights));
  EXPECT_EQ(library_.searches, searches);
}

}  // namespace
}  // namespace loopserve::worker::cuda
