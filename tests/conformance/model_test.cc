// Every architecture of models.def, on tiny random models: the logits of an independent float64
// implementation (tests/golden/model, made by bench/reference/make_goldens.py), and answers that
// depend neither on the chunks of a prefill, nor on the ranks, nor on what shares a step.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "tests/support/model_runner.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/model/architecture.h"

namespace loopserve {
namespace {

using testing::ModelRunner;
using testing::TinyModelSpec;

struct Golden {
  std::vector<common::TokenId> tokens;
  std::vector<double> logits;  // after the last token
};

Golden ReadGolden(const TinyModelSpec& spec) {
  const std::string path =
      absl::StrCat("tests/golden/model/", spec.architecture, "-", spec.name, ".txt");
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << "no golden logits: " << path;
  Golden golden;
  std::string line;
  std::getline(file, line);
  std::istringstream words(line);
  for (common::TokenId token = 0; words >> token;) golden.tokens.push_back(token);
  for (double value = 0; file >> value;) golden.logits.push_back(value);
  return golden;
}

// The largest difference, relative to the largest logit.
double Error(const std::vector<double>& expected, const float* actual) {
  double largest = 0;
  double difference = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    difference = std::max(difference, std::abs(expected[i] - double{actual[i]}));
  }
  return difference / largest;
}

class ModelConformanceTest : public ::testing::TestWithParam<TinyModelSpec> {
 protected:
  void SetUp() override {
    bytes_ = testing::MakeTinyModel(GetParam());
    file_ = *worker::GgufFile::Parse(bytes_);
    config_ = *worker::ReadModelConfig(*file_);
  }
  std::vector<float> Logits(const ModelRunner::Options& options, int64_t chunk,
                            std::span<const common::TokenId> tokens) const {
    const auto runner = ModelRunner::Create(*file_, config_, options);
    EXPECT_OK(runner);
    const auto logits = (*runner)->AppendAll(0, tokens, chunk);
    EXPECT_OK(logits);
    return *logits;
  }

  std::vector<std::byte> bytes_;
  std::unique_ptr<worker::GgufFile> file_;
  worker::ModelConfig config_;
};

TEST_P(ModelConformanceTest, GivesTheGoldenLogits) {
  const Golden golden = ReadGolden(GetParam());
  ASSERT_EQ(golden.logits.size(), static_cast<size_t>(config_.vocab));
  for (const std::string backend : {"reference", "cpu"}) {
    if (!worker::CreateBackend({.name = backend}).ok()) continue;
    const auto logits = Logits({.backend = backend}, 512, golden.tokens);
    EXPECT_LT(Error(golden.logits, &logits[logits.size() - golden.logits.size()]), 1e-4) << backend;
    const auto rounded =
        Logits({.backend = backend, .kv_dtype = kvstore::KvDtype::kBf16}, 512, golden.tokens);
    EXPECT_LT(Error(golden.logits, &rounded[rounded.size() - golden.logits.size()]), 3e-2)
        << backend;
  }
}

TEST_P(ModelConformanceTest, GivesTheSameBitsInEveryArrangement) {
  const std::vector<common::TokenId> tokens = ReadGolden(GetParam()).tokens;
  for (const std::string backend : {"reference", "cpu"}) {
    if (!worker::CreateBackend({.name = backend}).ok()) continue;
    const auto whole = Logits({.backend = backend}, 512, tokens);
    for (const int64_t chunk : {1, 5}) {
      EXPECT_TRUE(Logits({.backend = backend}, chunk, tokens) == whole)
          << backend << ", chunks of " << chunk;
    }
    for (const int tp : {2, 3, 4, 6, 9}) {
      if (tp > config_.q_heads) break;
      EXPECT_TRUE(Logits({.backend = backend, .tp = tp}, 512, tokens) == whole)
          << backend << ", " << tp << " ranks";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, ModelConformanceTest, ::testing::ValuesIn(testing::TinyPresets()),
                         [](const auto& info) {
                           return absl::StrCat(info.param.architecture, "_", info.param.name);
                         });

TEST(ModelTableTest, EveryArchitectureHasATinyModel) {
  for (const worker::Architecture* const architecture : worker::Architectures()) {
    EXPECT_TRUE(std::ranges::any_of(testing::TinyPresets(), [&](const TinyModelSpec& spec) {
      return spec.architecture == architecture->name();
    })) << architecture->name();
  }
}

}  // namespace
}  // namespace loopserve
