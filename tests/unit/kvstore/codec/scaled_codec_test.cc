#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kvstore/codec/codec.h"
#include "tests/support/kv_bytes.h"

namespace loopserve::kvstore {
namespace {

class ScaledCodecTest : public ::testing::TestWithParam<KvDtype> {
 protected:
  static const Codec& codec() { return *FindCodec(DtypeName(GetParam())); }

  static std::vector<std::byte> Encode(const KvShape& shape, int32_t tokens, ByteSpan block) {
    std::vector<std::byte> payload;
    EXPECT_TRUE(codec()
                    .Encode(shape, tokens, block,
                            [&](size_t, ByteSpan p) {
                              payload.assign(p.begin(), p.end());
                              return absl::OkStatus();
                            })
                    .ok());
    return payload;
  }
  static absl::StatusCode EncodeCode(const KvShape& shape, ByteSpan block) {
    return codec()
        .Encode(shape, 1, block, [](size_t, ByteSpan) { return absl::OkStatus(); })
        .code();
  }
  static absl::StatusCode DecodeCode(const KvShape& shape, const std::vector<std::byte>& payload) {
    std::vector<std::byte> out(shape.block_bytes());
    const ByteSpan planes[] = {payload};
    return codec().Decode(shape, 1, planes, out).code();
  }
  static std::vector<float> RoundTrip(const std::vector<float>& values);
};
INSTANTIATE_TEST_SUITE_P(All, ScaledCodecTest, ::testing::Values(KvDtype::kInt8, KvDtype::kFp8),
                         [](const auto& info) { return std::string(DtypeName(info.param)); });

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

std::vector<float> ScaledCodecTest::RoundTrip(const std::vector<float>& values) {
  const KvShape shape = OneVector(static_cast<int32_t>(values.size()));
  const auto payload = Encode(shape, 1, BlockOf(values));
  std::vector<std::byte> out(shape.block_bytes());
  const ByteSpan planes[] = {payload};
  EXPECT_TRUE(codec().Decode(shape, 1, planes, out).ok());
  std::vector<float> result;
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, out.data() + 2 * i, 2);
    result.push_back(testing::Bf16ToFloat(bits));
  }
  return result;
}

TEST_P(ScaledCodecTest, TheLargestAndZeroAreKept) {
  const std::vector<float> values = {-2.0f, 0.0f, 2.0f, 1.0f};
  const std::vector<float> result = RoundTrip(values);
  EXPECT_EQ(result[0], -2.0f);
  EXPECT_EQ(result[1], 0.0f);
  EXPECT_EQ(result[2], 2.0f);
  EXPECT_NEAR(result[3], 1.0f, 2 * codec().planes()[0].max_relative_error);
}

TEST_P(ScaledCodecTest, ZeroAndTinyVectorsBecomeZero) {
  EXPECT_EQ(RoundTrip({0, 0, 0, 0}), std::vector<float>(4, 0.0f));
  EXPECT_EQ(RoundTrip({1e-39f, 0, -1e-39f, 0}), std::vector<float>(4, 0.0f));
}

TEST_P(ScaledCodecTest, HugeVectorsStayFinite) {
  for (const float value : RoundTrip({3e38f, -3e38f, 1e38f, 0})) EXPECT_TRUE(std::isfinite(value));
}

TEST_P(ScaledCodecTest, ValuesThatAreNotFiniteAreRefused) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    EXPECT_EQ(EncodeCode(OneVector(2), BlockOf({1.0f, bad})), absl::StatusCode::kInvalidArgument);
  }
}

// Codes and scales are copied, so nothing is quantised twice.
TEST_P(ScaledCodecTest, BlocksOfItsOwnDtypeComeBackByteForByte) {
  for (KvShape shape : {testing::SmallShape(), OneVector(1), OneVector(5),
                        KvShape{.layers = 1, .kv_heads = 2, .head_dim = 5, .block_tokens = 7}}) {
    shape.dtype = GetParam();
    const auto block = testing::RandomBlock(shape, 11);
    for (int32_t tokens = 1; tokens <= shape.block_tokens; ++tokens) {
      const auto payload = Encode(shape, tokens, block);
      EXPECT_EQ(payload.size(), static_cast<size_t>(tokens) * shape.token_bytes());
      EXPECT_LE(payload.size(), codec().MaxEncodedBytes(shape, 0));
      std::vector<std::byte> out(shape.block_bytes(), std::byte{0x5a});
      const ByteSpan planes[] = {payload};
      ASSERT_TRUE(codec().Decode(shape, tokens, planes, out).ok());
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

TEST_P(ScaledCodecTest, ABlockWithoutAFiniteScaleIsRefused) {
  KvShape shape = OneVector(3);
  shape.dtype = GetParam();
  auto block = testing::RandomBlock(shape, 1);
  for (const float bad : {INFINITY, NAN}) {
    std::memcpy(block.data() + shape.scale_offset(0), &bad, sizeof bad);
    EXPECT_EQ(EncodeCode(shape, block), absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(ScaledCodecTest, AScaleThatIsNoScaleIsDamage) {
  for (const KvDtype dtype : {KvDtype::kBf16, GetParam()}) {
    KvShape shape = OneVector(4);
    shape.dtype = dtype;
    auto payload = Encode(shape, 1, testing::RandomBlock(shape, 1));
    EXPECT_EQ(DecodeCode(shape, payload), absl::StatusCode::kOk);
    for (const float bad : {NAN, INFINITY, -1.0f}) {
      std::memcpy(payload.data(), &bad, sizeof bad);
      EXPECT_EQ(DecodeCode(shape, payload), absl::StatusCode::kDataLoss);
    }
  }
}

TEST_P(ScaledCodecTest, KeepsNoBlocksOfTheOthers) {
  for (const KvDtype dtype : kKvDtypes) {
    EXPECT_EQ(codec().Stores(dtype), dtype == KvDtype::kBf16 || dtype == GetParam());
  }
}

}  // namespace
}  // namespace loopserve::kvstore
