#include "bench/synthetic_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "bench/random_fill.h"
#include "kvstore/scaled_vector.h"
#include "worker/model/model.h"

namespace loopserve::bench {
namespace {

using worker::WeightType;

TEST(SyntheticModel, KnowsItsShapesAndFormats) {
  for (const char* name : {"8b", "1b", "tiny"}) EXPECT_TRUE(FindShape(name).has_value()) << name;
  for (const char* name : {"bf16", "q4_0", "q8_0", "f32"}) {
    EXPECT_TRUE(FindWeights(name).has_value()) << name;
  }
  EXPECT_FALSE(FindShape("9b").has_value());
  EXPECT_FALSE(FindWeights("q6_k").has_value());
}

TEST(SyntheticModel, IsAModelThatTheLoaderTakes) {
  const ModelShape shape = *FindShape("tiny");
  for (const char* name : {"bf16", "q4_0", "q8_0", "f32"}) {
    auto model = SyntheticModel::Create(shape, *FindWeights(name));
    ASSERT_TRUE(model.ok()) << model.status();
    const auto config = worker::ReadModelConfig((*model)->file());
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->layers, shape.layers);
    EXPECT_EQ(config->vocab, shape.vocab);
    EXPECT_EQ(config->head_dim, shape.head_dim);
    EXPECT_FALSE(config->tied_embeddings);
  }
}

TEST(SyntheticModel, WeightsAreFiniteAndOfTheSameSpread) {
  for (const char* name : {"bf16", "q4_0", "q8_0", "f32"}) {
    auto model = SyntheticModel::Create(*FindShape("tiny"), *FindWeights(name));
    ASSERT_TRUE(model.ok()) << model.status();
    for (const worker::GgufFile::Tensor& tensor : (*model)->file().tensors()) {
      if (tensor.dims.size() < 2) continue;
      std::vector<float> values(static_cast<size_t>(tensor.view.rows * tensor.view.cols));
      ASSERT_TRUE(worker::DequantizeRows(tensor.view, 0, values).ok());
      double squares = 0;
      for (const float value : values) squares += double{value} * value;
      const double deviation = std::sqrt(squares / static_cast<double>(values.size()));
      EXPECT_GT(deviation, 0.01) << name << " " << tensor.name;
      EXPECT_LT(deviation, 0.04) << name << " " << tensor.name;
    }
  }
}

// 16 GB of addresses, 64 MB of memory.
TEST(SyntheticModel, LargeOnesAreLargeOnlyToTheReader) {
  auto model = SyntheticModel::Create(*FindShape("8b"), WeightType::kBF16);
  ASSERT_TRUE(model.ok()) << model.status();
  const worker::GgufFile& file = (*model)->file();
  EXPECT_GT(file.file_bytes(), uint64_t{16} * 1000 * 1000 * 1000);
  const auto* last = file.FindTensor("blk.31.ffn_down.weight");
  ASSERT_NE(last, nullptr);
  std::vector<float> row(static_cast<size_t>(last->view.cols));
  ASSERT_TRUE(worker::DequantizeRows(last->view, last->view.rows - 1, row).ok());
  EXPECT_NE(row.front(), row.back());
}

TEST(RandomFill, KvOfEveryDtypeIsFinite) {
  for (const auto dtype : kvstore::kKvDtypes) {
    const kvstore::KvShape shape{
        .layers = 2, .kv_heads = 3, .head_dim = 10, .block_tokens = 7, .dtype = dtype};
    std::vector<std::byte> block(shape.block_bytes());
    FillKvBlock(shape, 1, block);
    std::vector<std::byte> again(block.size());
    FillKvBlock(shape, 1, again);
    EXPECT_EQ(block, again);
    if (!kvstore::HasScales(dtype)) continue;
    EXPECT_TRUE(kvstore::AreNumbers(dtype, block.data(), shape.scale_offset(0)));
    float scale = 0;
    std::memcpy(&scale,
                block.data() + shape.offset(1, kvstore::KvSide::kValue, 2) + shape.scale_offset(6),
                sizeof(scale));
    EXPECT_EQ(scale, 1.0F / 128);
  }
}

TEST(RandomFill, RefusesPartsOfBlocksAndOtherFormats) {
  std::vector<std::byte> bytes(20);
  EXPECT_TRUE(absl::IsInvalidArgument(FillWeights(WeightType::kQ4_0, 1, 1, bytes)));
  bytes.resize(InfoOf(WeightType::kQ6_K).block_bytes);
  EXPECT_TRUE(absl::IsUnimplemented(FillWeights(WeightType::kQ6_K, 1, 1, bytes)));
}

}  // namespace
}  // namespace loopserve::bench
