#include "kvstore/kv_shape.h"

#include <gtest/gtest.h>

namespace loopserve::kvstore {
namespace {

KvShape Shape(KvDtype dtype) {
  return {.layers = 2, .kv_heads = 3, .head_dim = 64, .block_tokens = 32, .dtype = dtype};
}

TEST(KvShapeTest, HeadsOfPlainValuesAreVectorsAndNothingElse) {
  for (const auto& [dtype, bytes] : {std::pair{KvDtype::kBf16, 2u}, {KvDtype::kF32, 4u}}) {
    const KvShape shape = Shape(dtype);
    EXPECT_EQ(shape.vector_bytes(), 64u * bytes);
    EXPECT_EQ(shape.vector_offset(5), 5u * 64 * bytes);
    EXPECT_EQ(shape.scale_bytes(), 0u);
    EXPECT_EQ(shape.head_bytes(), 32u * 64 * bytes);
    EXPECT_EQ(shape.block_bytes(), 2u * 2 * 3 * 32 * 64 * bytes);
    EXPECT_EQ(shape.token_bytes(), 2u * 2 * 3 * 64 * bytes);
  }
}

TEST(KvShapeTest, ScalesFollowTheVectorsOfTheirHead) {
  const KvShape shape = Shape(KvDtype::kInt8);
  EXPECT_EQ(shape.vector_bytes(), 64u);
  EXPECT_EQ(shape.scale_offset(0), 32u * 64);
  EXPECT_EQ(shape.scale_offset(31), 32u * 64 + 31 * 4);
  EXPECT_EQ(shape.head_bytes(), 32u * 64 + 32 * 4);
  EXPECT_EQ(shape.offset(1, KvSide::kValue, 2), (1u * 2 * 3 + 3 + 2) * shape.head_bytes());
  EXPECT_EQ(shape.token_bytes(), 2u * 2 * 3 * (64 + 4));
  EXPECT_EQ(shape.block_bytes(), 32 * shape.token_bytes());
  // About twice the tokens in the same memory.
  EXPECT_GT(Shape(KvDtype::kBf16).block_bytes() * 10, shape.block_bytes() * 18);
  EXPECT_EQ(Shape(KvDtype::kFp8).block_bytes(), shape.block_bytes());
  EXPECT_EQ(Shape(KvDtype::kFp8).scale_offset(31), shape.scale_offset(31));
}

TEST(KvShapeTest, OddSizesOfInt8HaveNoGaps) {
  const KvShape shape = {
      .layers = 1, .kv_heads = 1, .head_dim = 7, .block_tokens = 3, .dtype = KvDtype::kInt8};
  EXPECT_EQ(shape.scale_offset(2), 3u * 7 + 2 * 4);
  EXPECT_EQ(shape.head_bytes(), 3u * (7 + 4));
}

TEST(KvShapeTest, DtypesHaveNames) {
  EXPECT_STREQ(DtypeName(KvDtype::kBf16), "bf16");
  EXPECT_STREQ(DtypeName(KvDtype::kF32), "f32");
  EXPECT_STREQ(DtypeName(KvDtype::kInt8), "int8");
  EXPECT_STREQ(DtypeName(KvDtype::kFp8), "fp8");
  for (const KvDtype dtype : kKvDtypes) EXPECT_EQ(DtypeFromName(DtypeName(dtype)), dtype);
  EXPECT_EQ(DtypeFromName("fp16"), std::nullopt);
}

}  // namespace
}  // namespace loopserve::kvstore
