// Whole models on the cuda backend: the logits of the reference backend within what bf16 leaves,
// however the tokens are cut into steps, with decode steps recorded and replayed as graphs.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/model_runner.h"
#include "tests/support/sampling_rows.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/backend/cuda/device.h"
#include "worker/backend/row_sampler.h"

namespace loopserve {
namespace {

using testing::ModelRunner;
using testing::TinyModelSpec;

// Heads as wide as the fast kernels need, few enough for the reference to be quick.
TinyModelSpec Spec(absl::string_view name, int32_t head_dim, worker::WeightType type) {
  TinyModelSpec spec;
  spec.name = std::string(name);
  spec.hidden = 256;
  spec.q_heads = 6;
  spec.kv_heads = 2;
  spec.head_dim = head_dim;
  spec.ffn = 512;
  spec.context = 1024;
  return testing::WithType(spec, type);
}

std::vector<TinyModelSpec> Specs() {
  std::vector<TinyModelSpec> specs = {
      Spec("d64", 64, worker::WeightType::kBF16), Spec("d128", 128, worker::WeightType::kBF16),
      Spec("d64q4", 64, worker::WeightType::kQ4_0), Spec("d128q8", 128, worker::WeightType::kQ8_0),
      Spec("d64k", 64, worker::WeightType::kQ4_K)};
  for (const TinyModelSpec& preset : testing::TinyPresets()) specs.push_back(preset);
  return specs;
}

class CudaModelTest : public ::testing::TestWithParam<TinyModelSpec> {
 protected:
  void SetUp() override {
    if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "skipped: no CUDA device";
    }
    ASSERT_OK(worker::CreateBackend({.name = "cuda"}));  // not found, cuBLASLt makes this fail
    bytes_ = testing::MakeTinyModel(GetParam());
    file_ = *worker::GgufFile::Parse(bytes_);
    config_ = *worker::ReadModelConfig(*file_);
    std::mt19937 random(7);
    const int64_t most = std::min<int64_t>(300, config_.context_tokens);
    for (int64_t i = 0; i < most; ++i) {
      tokens_.push_back(static_cast<common::TokenId>(random() % uint32_t(config_.vocab)));
    }
    const auto reference = Runner("reference", 1);
    ASSERT_OK(reference);
    ASSERT_OK_AND_ASSIGN(want_, (*reference)->AppendAll(0, tokens_, 512));
  }
  absl::StatusOr<std::unique_ptr<ModelRunner>> Runner(const std::string& backend, int sequences) {
    return ModelRunner::Create(*file_, config_,
                               {.backend = backend,
                                .kv_dtype = kvstore::KvDtype::kBf16,
                                .max_positions = static_cast<int64_t>(tokens_.size()),
                                .sequences = sequences,
                                .block_tokens = 32});
  }
  // Of rows [first, first + n), over all logits: relative to their size.
  double Error(const std::vector<float>& got, size_t first, size_t n) const {
    const auto vocab = static_cast<size_t>(config_.vocab);
    double difference = 0, size = 0;
    for (size_t i = 0; i < n * vocab; ++i) {
      const double want = want_[first * vocab + i];
      difference += (got[i] - want) * (got[i] - want);
      size += want * want;
    }
    return std::sqrt(difference / size);
  }

  std::vector<std::byte> bytes_;
  std::unique_ptr<worker::GgufFile> file_;
  worker::ModelConfig config_;
  std::vector<common::TokenId> tokens_;
  std::vector<float> want_;
};

// Activations are rounded to bf16 some ten times per layer, by 0.2 % each on average.
constexpr double kTolerance = 0.03;

TEST_P(CudaModelTest, PrefillInChunksOfAnySize) {
  for (const int64_t chunk : {300, 128, 37, 16, 9, 5}) {
    ASSERT_OK_AND_ASSIGN(const auto runner, Runner("cuda", 1));
    ASSERT_OK_AND_ASSIGN(const auto got, runner->AppendAll(0, tokens_, chunk));
    EXPECT_LT(Error(got, 0, tokens_.size()), kTolerance) << "chunks of " << chunk;
  }
}

TEST_P(CudaModelTest, DecodeReplaysWhatItRecorded) {
  ASSERT_OK_AND_ASSIGN(const auto runner, Runner("cuda", 1));
  const size_t prompt = tokens_.size() - 80;
  ASSERT_OK(runner->AppendAll(0, std::span(tokens_).first(prompt), 512));
  ASSERT_OK_AND_ASSIGN(const auto got, runner->AppendAll(0, std::span(tokens_).subspan(prompt), 1));
  for (size_t i = 0; i < 80; ++i) {
    const auto vocab = static_cast<size_t>(config_.vocab);
    const std::vector<float> row(got.begin() + static_cast<ptrdiff_t>(i * vocab),
                                 got.begin() + static_cast<ptrdiff_t>((i + 1) * vocab));
    EXPECT_LT(Error(row, prompt + i, 1), 2 * kTolerance) << "token " << i;
  }
}

// Tokens chosen on the device, in recorded steps, too: those that a host chooses from the logits.
TEST_P(CudaModelTest, ChoosesAsAHostDoes) {
  ASSERT_OK_AND_ASSIGN(const auto gives, Runner("cuda", 1));
  ASSERT_OK_AND_ASSIGN(const auto chooses, Runner("cuda", 1));
  const int64_t vocab = config_.vocab;
  const std::vector<int32_t> rows = {0};
  for (size_t i = 0; i < 40; ++i) {
    const ModelRunner::Part part{0, {tokens_[i]}};
    worker::SamplingPlan plan;
    plan.rows.push_back(testing::AnySampling(static_cast<uint32_t>(i)));
    if (i % 3 == 0) {
      plan.adjustments.push_back({.token = static_cast<common::TokenId>(i), .bias = 2});
      plan.rows[0].adjustments = 1;
    }
    ASSERT_OK_AND_ASSIGN(auto logits, gives->Append({&part, 1}, rows));
    ASSERT_OK_AND_ASSIGN(const auto got, chooses->Choose({&part, 1}, rows, plan.view()));
    worker::RowChoice want;
    ASSERT_OK(
        worker::RowSampler().Sample({logits.data(), 1, vocab, vocab}, plan.view(), {&want, 1}));
    EXPECT_EQ(testing::Difference(plan.rows[0], got.at(0), want), "") << "token " << i;
  }
}

// Sequences that decode beside others that prefill, each at its own length.
TEST_P(CudaModelTest, MixedSteps) {
  ASSERT_OK_AND_ASSIGN(const auto runner, Runner("cuda", 3));
  size_t done[3] = {0, 0, 0};
  for (int step = 0; step < 30; ++step) {
    std::vector<ModelRunner::Part> parts;
    std::vector<int32_t> logit_rows;
    std::vector<size_t> at;
    int32_t rows = 0;
    for (int s = 0; s < 3; ++s) {
      const size_t wanted = s == 0 ? 1 : s == 1 ? (step % 3 == 0 ? 25 : 1) : (step < 5 ? 40 : 1);
      const size_t n = std::min(wanted, tokens_.size() - done[s]);
      if (n == 0) continue;
      parts.push_back({.sequence = s,
                       .tokens = {tokens_.begin() + static_cast<ptrdiff_t>(done[s]),
                                  tokens_.begin() + static_cast<ptrdiff_t>(done[s] + n)}});
      done[s] += n;
      rows += static_cast<int32_t>(n);
      logit_rows.push_back(rows - 1);
      at.push_back(done[s] - 1);
    }
    ASSERT_OK_AND_ASSIGN(const auto got, runner->Append(parts, logit_rows));
    const auto vocab = static_cast<size_t>(config_.vocab);
    for (size_t i = 0; i < at.size(); ++i) {
      const std::vector<float> row(got.begin() + static_cast<ptrdiff_t>(i * vocab),
                                   got.begin() + static_cast<ptrdiff_t>((i + 1) * vocab));
      EXPECT_LT(Error(row, at[i], 1), 2 * kTolerance) << "step " << step << " sequence " << i;
    }
  }
}

// What becomes E4M3 where a device has it: matrices of layers in 16 bits or more, of whole 16
// outputs.
bool BecomesE4m3(const worker::GgufFile::Tensor& tensor) {
  const worker::WeightType type = tensor.view.type;
  return tensor.dims.size() == 2 && absl::StartsWith(tensor.name, "blk.") &&
         tensor.view.rows % 16 == 0 &&
         (type == worker::WeightType::kF32 || type == worker::WeightType::kF16 ||
          type == worker::WeightType::kBF16);
}

// Layers in E4M3: their rounding is some fifteen times that of bf16.
TEST_P(CudaModelTest, EightBits) {
  ASSERT_OK_AND_ASSIGN(const auto runner,
                       ModelRunner::Create(*file_, config_,
                                           {.backend = "cuda",
                                            .activation_bits = 8,
                                            .kv_dtype = kvstore::KvDtype::kBf16,
                                            .max_positions = static_cast<int64_t>(tokens_.size()),
                                            .block_tokens = 32}));
  ASSERT_OK_AND_ASSIGN(const auto device, worker::cuda::Device::Open(0));
  const bool rounds = device.has_fp8() && std::ranges::any_of(file_->tensors(), BecomesE4m3);
  EXPECT_EQ(runner->backend().activation_format(), rounds ? "e4m3" : "16");
  for (const int64_t chunk : {300, 37, 9}) {
    runner->Clear(0);
    ASSERT_OK_AND_ASSIGN(const auto got, runner->AppendAll(0, tokens_, chunk));
    EXPECT_LT(Error(got, 0, tokens_.size()), 0.25) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaModelTest, ::testing::ValuesIn(Specs()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace loopserve
