#include "tests/support/tiny_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <set>

#include "tests/support/status_matchers.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::testing {
namespace {

using worker::GgufFile;
using worker::WeightType;

constexpr WeightType kTypes[] = {
    WeightType::kF32,  WeightType::kF16,  WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1,
    WeightType::kQ5_0, WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K};

TEST(TinyModelTest, EveryPresetInEveryFormatIsASoundModel) {
  for (const TinyModelSpec& preset : TinyPresets()) {
    for (const WeightType type : kTypes) {
      const auto bytes = MakeTinyModel(WithType(preset, type));
      const auto file = GgufFile::Parse(bytes);
      ASSERT_THAT(file, IsOk());
      const auto config = worker::ReadModelConfig(**file);
      EXPECT_THAT(config, IsOk()) << preset.name;
      EXPECT_LT(bytes.size(), size_t{8} << 20);
    }
  }
}

TEST(TinyModelTest, WeightsHaveTheDeviationThatWasAskedForInEveryFormat) {
  for (const WeightType type : kTypes) {
    const auto bytes = MakeTinyModel(WithType(*FindPreset("wide"), type));
    const auto file = *GgufFile::Parse(bytes);
    const auto& tensor = *file->FindTensor("blk.0.attn_v.weight");
    EXPECT_EQ(tensor.view.type, type);
    std::vector<float> values(static_cast<size_t>(tensor.view.rows * tensor.view.cols));
    ASSERT_OK(worker::DequantizeRows(tensor.view, 0, values));
    double sum = 0;
    double squares = 0;
    for (const float value : values) {
      sum += value;
      squares += double{value} * value;
    }
    const auto count = static_cast<double>(values.size());
    const double sigma = std::sqrt(squares / count);
    EXPECT_NEAR(sigma, 1 / 16.0, 0.2 / 16) << worker::InfoOf(type).name;
    EXPECT_NEAR(sum / count, 0, 0.1 * sigma) << worker::InfoOf(type).name;
  }
}

TEST(TinyModelTest, DependsOnTheSpecAlone) {
  EXPECT_EQ(MakeTinyModel(*FindPreset("gqa")), MakeTinyModel(*FindPreset("gqa")));
  TinyModelSpec other = *FindPreset("gqa");
  other.seed = 77;
  EXPECT_NE(MakeTinyModel(other), MakeTinyModel(*FindPreset("gqa")));
  EXPECT_FALSE(FindPreset("none").has_value());
}

TEST(TinyModelTest, TheVocabularyHasEveryByteOnce) {
  const std::vector<std::string> tokens = TinyVocabulary();
  EXPECT_EQ(std::set<std::string>(tokens.begin(), tokens.end()).size(), tokens.size());
  EXPECT_EQ(tokens[1], "<|im_start|>");
  EXPECT_EQ(tokens[3 + 'a'], "a");
  EXPECT_EQ(tokens[3 + ' '], "\xC4\xA0");
  EXPECT_EQ(tokens[3 + '\n'], "\xC4\x8A");
  EXPECT_EQ(tokens[3 + 0xAD], "\xC5\x83");
}

TEST(TinyModelTest, WritesFiles) {
  const std::string path = WriteTempModel(*FindPreset("mqa"));
  const auto file = GgufFile::Open(path);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->file_bytes(), MakeTinyModel(*FindPreset("mqa")).size());
  std::remove(path.c_str());
  EXPECT_FALSE(WriteTinyModel(*FindPreset("mqa"), "/nowhere/x.gguf").ok());
}

}  // namespace
}  // namespace loopserve::testing
