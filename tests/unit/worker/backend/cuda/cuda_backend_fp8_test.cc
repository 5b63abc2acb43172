// A CUDA backend that was asked for activations of 8 bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "common/status_macros.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "tests/unit/worker/backend/cuda/use_fake_lt.h"
#include "worker/backend/cuda/cuda_backend.h"
#include "worker/backend/cuda/kernels/fp8_layout.h"
#include "worker/backend/cuda/matmul/packed_weight.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;
using enum ActivationType;

class CudaBackendFp8Test : public LaunchTest {
 protected:
  std::unique_ptr<Backend> Create(int bits) {
    auto backend = CreateCudaBackend({.threads = 1, .activation_bits = bits});
    EXPECT_OK(backend.status());
    Take();  // how the device was tried
    return *std::move(backend);
  }

  FakeLt& library_ = UseFakeLt();
};

TEST_F(CudaBackendFp8Test, WithEightBitsLayersBecomeE4m3) {
  const std::unique_ptr<Backend> backend = Create(8);
  EXPECT_EQ(backend->activation_format(), "16") << "no matrix yet";
  const std::vector<float> values(48 * 100, 0.5F);
  const WeightView view{WeightType::kF32, 48, 100, std::as_bytes(std::span(values))};
  const size_t before = fake::alive().device_bytes;
  const auto matrix = backend->LoadMatrix(view, {16, 32}, MatrixUse::kLinear);
  ASSERT_OK(matrix.status());
  const std::vector<fake::Launch> launches = Take();
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_THAT(launches[0].kernel, HasSubstr("ToE4m3"));
  EXPECT_EQ(launches[0].grid.x, 16u);
  EXPECT_EQ((*matrix)->resident_bytes(), 1792u + 64) << "bytes on 16, scales on 256";
  EXPECT_EQ(fake::alive().device_bytes, before + 1856) << "nothing else is kept";
  EXPECT_EQ(backend->MatrixBytes(WeightType::kF32, 16, 100, MatrixUse::kLinear), 1856u);
  EXPECT_EQ(backend->activation_format(), "e4m3");
  EXPECT_EQ(backend->name(), "cuda/Pretended H100, fp8");

  const TensorView x = View(64, 100, kBf16), out = View(64, 16);
  const Matrix* const weights[] = {matrix->get()};
  EXPECT_OK(backend->MatMul(x, weights, std::span(&out, 1)));
  EXPECT_THAT(Take(),
              ::testing::Contains(::testing::Field(&fake::Launch::kernel, HasSubstr("ToE4m3"))));
  const std::vector<int32_t> tokens = {0};
  EXPECT_THAT(backend->EmbedRows(**matrix, 0, tokens, View(1, 100)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("vocabulary")));
}

TEST_F(CudaBackendFp8Test, VocabularyAndQuantisedMatricesStayAsTheyAre) {
  const std::unique_ptr<Backend> backend = Create(8);
  const std::vector<std::byte> bytes(64 * 64 * 4);
  for (const auto& [type, use] : {std::pair(WeightType::kF32, MatrixUse::kVocabulary),
                                  std::pair(WeightType::kQ4_0, MatrixUse::kLinear),
                                  std::pair(WeightType::kQ8_0, MatrixUse::kLinear)}) {
    const auto matrix = backend->LoadMatrix({type, 64, 64, bytes}, {0, 64}, use);
    ASSERT_OK(matrix.status());
    EXPECT_EQ(backend->MatrixBytes(type, 64, 64, use), (*matrix)->resident_bytes());
  }
  ExpectNoLaunch();
  EXPECT_EQ(backend->activation_format(), "16");
}

// The library multiplies E4M3 of whole 16 outputs alone; what counts are those of the shard.
TEST_F(CudaBackendFp8Test, ShardsWithoutWhole16OutputsStayBf16) {
  const std::unique_ptr<Backend> backend = Create(8);
  const std::vector<float> values(32 * 64);
  const WeightView view{WeightType::kF32, 32, 64, std::as_bytes(std::span(values))};
  for (const RowRange rows : {RowRange{0, 8}, RowRange{0, 17}, RowRange{1, 32}}) {
    const auto matrix = backend->LoadMatrix(view, rows, MatrixUse::kLinear);
    ASSERT_OK(matrix.status());
    EXPECT_EQ((*matrix)->resident_bytes(), static_cast<size_t>(rows.size()) * 64 * 2);
    EXPECT_EQ(backend->MatrixBytes(view.type, rows.size(), 64, MatrixUse::kLinear),
              (*matrix)->resident_bytes());
  }
  ExpectNoLaunch();
  EXPECT_EQ(backend->activation_format(), "16");
  ASSERT_OK(backend->LoadMatrix(view, {8, 24}, MatrixUse::kLinear).status());
  EXPECT_THAT(Take(),
              ::testing::ElementsAre(::testing::Field(&fake::Launch::kernel, HasSubstr("ToE4m3"))));
  EXPECT_EQ(backend->activation_format(), "e4m3");
}

TEST_F(CudaBackendFp8Test, ADeviceWithoutE4m3Keeps16Bits) {
  fake::SetCapability(8, 6);
  const std::unique_ptr<Backend> backend = Create(8);
  const std::vector<float> values(64 * 64);
  const auto matrix = backend->LoadMatrix(
      {WeightType::kF32, 64, 64, std::as_bytes(std::span(values))}, {0, 64}, MatrixUse::kLinear);
  ASSERT_OK(matrix.status());
  EXPECT_EQ((*matrix)->resident_bytes(), 64u * 64 * 2);
  EXPECT_EQ(backend->activation_format(), "16");
}

TEST_F(CudaBackendFp8Test, OnAdaAKernelBringsTheScales) {
  fake::SetCapability(8, 9);
  library_.scales_rows = false;
  const std::unique_ptr<Backend> backend = Create(8);
  const std::vector<float> values(64 * 64);
  const auto matrix = backend->LoadMatrix(
      {WeightType::kF32, 64, 64, std::as_bytes(std::span(values))}, {0, 64}, MatrixUse::kLinear);
  ASSERT_OK(matrix.status());
  Take();
  const TensorView x = View(64, 64, kBf16);
  const Matrix* const weights[] = {matrix->get()};
  EXPECT_OK(backend->MatMul(x, weights, std::span(&x, 1)));
  EXPECT_EQ(Take().size(), 2u) << "ToE4m3 and ScaleSums";
}

// A model as the loader meets it: what it takes is what was predicted.
TEST_F(CudaBackendFp8Test, AModelTakesWhatWasPredicted) {
  const std::vector<std::byte> bytes = testing::MakeTinyModel(*testing::FindPreset("untied"));
  const auto file = *GgufFile::Parse(bytes);
  const ModelConfig config = *ReadModelConfig(*file);
  size_t weights[2] = {};
  for (const int bits : {16, 8}) {
    const std::unique_ptr<Backend> backend = Create(bits);
    const MemoryEstimate estimate = EstimateMemory(*file, config, {0, 1}, {}, *backend);
    const auto model = LoadModel(*file, config, {0, 1}, *backend, {});
    ASSERT_OK(model.status());
    EXPECT_EQ((*model)->resident_bytes(), estimate.weights_bytes) << bits;
    EXPECT_EQ(backend->activation_format(), bits == 8 ? "e4m3" : "16");
    weights[bits / 16] = estimate.weights_bytes;
  }
  size_t saved = 0;
  for (const GgufFile::Tensor& tensor : file->tensors()) {
    if (tensor.dims.size() < 2 || !absl::StartsWith(tensor.name, "blk.")) continue;
    const WeightView& view = tensor.view;
    saved += PackedBytes(view.type, view.rows, view.cols) - Fp8Bytes(view.rows, view.cols);
  }
  EXPECT_EQ(weights[0] + saved, weights[1]) << "of layers alone";
}

}  // namespace
}  // namespace loopserve::worker::cuda
