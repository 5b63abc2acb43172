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

// Codes and scales are copied, so nothing is quantised twice.
TEST(Int8Test, BlocksOfInt8ComeBackByteForByte) {
  for (KvShape shape : {testing::SmallShape(), OneVector(1), OneVector(5),
                        KvShape{.layers = 1, .kv_heads = 2, .head_dim = 5, .block_tokens = 7}}) {
    shape.dtype = KvDtype::kInt8;
    const auto block = testing::RandomBlock(shape, 11);
    for (int32_t tokens = 1; tokens <= shape.block_tokens; ++tokens) {
      const auto payload = Encode(shape, tokens, block);
      EXPECT_EQ(payload.size(), static_cast<size_t>(tokens) * shape.token_bytes());
      EXPECT_LE(payload.size(), Int8().MaxEncodedBytes(shape, 0));
      std::vector<std::byte> out(shape.block_bytes(), std::byte{0x5a});
      const ByteSpan planes[] = {payload};
      ASSERT_TRUE(Int8().Decode(shape, tokens, planes, out).ok());
      for (size_t head = 0; head < block.size(); head += shape.head_bytes()) {
        for (size_t slot = 0; slot < static_cast<size_t>(shape.block_tokens); ++slot) {
          const std::byte* vector = out.data() + head + shape.vector_offset(slot);
          const std::byte* scale = out.data() + head + shape.scale_offset(slot);
          const bool used = slot < static_cast<size_t>(tokens);
          const std::vector<std::byte> rest(shape.vector_bytes() + 4, std::byte{0x5a});
          const std::byte* want_vector = block.data() + (vector - out.data());
          const std::byte* want_scale = block.data() + (scale - out.data());
          EXPECT_EQ(0, std::memcmp(vector, used ? want_vector : rest.data(), shape.vector_bytes()));
          EXPECT_EQ(0, std::memcmp(scale, used ? want_scale : rest.data(), 4));
        }
      }
    }
  }
}

TEST(Int8Test, AnInt8BlockWithoutAFiniteScaleIsRefused) {
  KvShape shape = OneVector(3);
  shape.dtype = KvDtype::kInt8;
  auto block = testing::RandomBlock(shape, 1);
  for (const float bad : {INFINITY, NAN}) {
    std::memcpy(block.data() + shape.scale_offset(0), &bad, sizeof bad);
    EXPECT_EQ(
        Int8().Encode(shape, 1, block, [](size_t, ByteSpan) { return absl::OkStatus(); }).code(),
        absl::StatusCode::kInvalidArgument);
  }
}

TEST(Int8Test, AScaleThatIsNoScaleIsDamageInAnInt8BlockToo) {
  KvShape shape = OneVector(3);
  shape.dtype = KvDtype::kInt8;
  auto payload = Encode(shape, 1, testing::RandomBlock(shape, 1));
  std::vector<std::byte> out(shape.block_bytes());
  const float bad = NAN;
  std::memcpy(payload.data(), &bad, sizeof bad);
  const ByteSpan planes[] = {payload};
  EXPECT_EQ(Int8().Decode(shape, 1, planes, out).code(), absl::StatusCode::kDataLoss);
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
