#include <gtest/gtest.h>

#include <cmath>

#include "kvstore/codec/codec.h"
#include "tests/support/kv_bytes.h"

namespace loopserve::kvstore {
namespace {

const Codec& Int8() { return *FindCodec("int8"); }

std::vector<std::byte> Encode(const KvShape& shape, int32_t tokens, ByteSpan block) {
  std::vector<std::byte> payload;
  EXPECT_TRUE(Int8()
                  .Encode(shape, tokens, block,
                          [&](size_t, ByteSpan p) {
                            payload.assign(p.begin(), p.end());
                            return absl::OkStatus();
                          })
                  .ok());
  return payload;
}

KvShape OneVector(int32_t dim) {
  return {.layers = 1, .kv_heads = 1, .head_dim = dim, .block_tokens = 1};
}

// Both sides of the one token, from the same values.
std::vector<std::byte> BlockOf(const std::vector<float>& values) {
  std::vector<std::byte> block;
  for (int side = 0; side < 2; ++side) {
    for (const float value : values) {
      const uint16_t bits = testing::FloatToBf16(value);
      const auto* p = reinterpret_cast<const std::byte*>(&bits);
      block.insert(block.end(), p, p + 2);
    }
  }
  return block;
}

std::vector<float> RoundTrip(const std::vector<float>& values) {
  const KvShape shape = OneVector(static_cast<int32_t>(values.size()));
  const auto payload = Encode(shape, 1, BlockOf(values));
  std::vector<std::byte> out(shape.block_bytes());
  const ByteSpan planes[] = {payload};
  EXPECT_TRUE(Int8().Decode(shape, 1, planes, out).ok());
  std::vector<float> result;
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, out.data() + 2 * i, 2);
    result.push_back(testing::Bf16ToFloat(bits));
  }
  return result;
}

TEST(Int8Test, TheLargestAndZeroAreKept) {
  const std::vector<float> values = {-2.0f, 0.0f, 2.0f, 1.0f};
  const std::vector<float> result = RoundTrip(values);
  EXPECT_EQ(result[0], -2.0f);
  EXPECT_EQ(result[1], 0.0f);
  EXPECT_EQ(result[2], 2.0f);
  EXPECT_NEAR(result[3], 1.0f, 2 * Int8().planes()[0].max_relative_error);
}

TEST(Int8Test, ZeroAndTinyVectorsBecomeZero) {
  EXPECT_EQ(RoundTrip({0, 0, 0, 0}), std::vector<float>(4, 0.0f));
  EXPECT_EQ(RoundTrip({1e-39f, 0, -1e-39f, 0}), std::vector<float>(4, 0.0f));
}

TEST(Int8Test, HugeVectorsStayFinite) {
  for (const float value : RoundTrip({3e38f, -3e38f, 1e38f, 0})) EXPECT_TRUE(std::isfinite(value));
}

TEST(Int8Test, ValuesThatAreNotFiniteAreRefused) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    EXPECT_EQ(Int8()
                  .Encode(OneVector(2), 1, BlockOf({1.0f, bad}),
                          [](size_t, ByteSpan) { return absl::OkStatus(); })
                  .code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(Int8Test, AScaleThatIsNoScaleIsDamage) {
  const KvShape shape = OneVector(4);
  auto payload = Encode(shape, 1, BlockOf({1, 2, 3, 4}));
  std::vector<std::byte> out(shape.block_bytes());
  for (const float bad : {NAN, INFINITY, -1.0f}) {
    std::memcpy(payload.data(), &bad, 4);
    const ByteSpan planes[] = {payload};
    EXPECT_EQ(Int8().Decode(shape, 1, planes, out).code(), absl::StatusCode::kDataLoss);
  }
}

}  // namespace
}  // namespace loopserve::kvstore
