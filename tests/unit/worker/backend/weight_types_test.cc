#include "worker/backend/weight_types.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using testing::StatusIs;

std::vector<std::byte> Bytes(std::initializer_list<int> values) {
  std::vector<std::byte> out;
  for (const int v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

std::vector<float> Decode(WeightType type, int64_t cols, const std::vector<std::byte>& data) {
  std::vector<float> out(static_cast<size_t>(cols));
  EXPECT_OK(DequantizeRows({type, 1, cols, data}, 0, out));
  return out;
}

// 0x3c00 is 1.0 and 0x4000 is 2.0 in fp16; blocks are written by hand from the format's definition.
TEST(WeightTypes, BlocksOf32) {
  std::vector<std::byte> q4_0 = Bytes({0x00, 0x40});
  for (int j = 0; j < 16; ++j) q4_0.push_back(static_cast<std::byte>(j | (15 - j) << 4));
  std::vector<float> v = Decode(WeightType::kQ4_0, 32, q4_0);
  EXPECT_EQ(v[0], -16);
  EXPECT_EQ(v[15], 14);
  EXPECT_EQ(v[16], 14);
  EXPECT_EQ(v[31], -16);

  std::vector<std::byte> q4_1 = Bytes({0x00, 0x40, 0x00, 0x3c});
  for (int j = 0; j < 16; ++j) q4_1.push_back(static_cast<std::byte>(j));
  v = Decode(WeightType::kQ4_1, 32, q4_1);
  EXPECT_EQ(v[3], 7);
  EXPECT_EQ(v[19], 1);

  // The fifth bits: value 0 and value 31 have theirs set.
  std::vector<std::byte> q5_0 = Bytes({0x00, 0x3c, 0x01, 0x00, 0x00, 0x80});
  q5_0.resize(22);
  v = Decode(WeightType::kQ5_0, 32, q5_0);
  EXPECT_EQ(v[0], 0);
  EXPECT_EQ(v[1], -16);
  EXPECT_EQ(v[31], 0);

  std::vector<std::byte> q5_1 = Bytes({0x00, 0x3c, 0x00, 0x40, 0x02, 0x00, 0x00, 0x00});
  q5_1.resize(24);
  q5_1[9] = std::byte{0x21};
  v = Decode(WeightType::kQ5_1, 32, q5_1);
  EXPECT_EQ(v[0], 2);
  EXPECT_EQ(v[1], 19);
  EXPECT_EQ(v[17], 4);

  std::vector<std::byte> q8_0 = Bytes({0x00, 0x40, 0x80, 0x7f});
  q8_0.resize(34);
  v = Decode(WeightType::kQ8_0, 32, q8_0);
  EXPECT_EQ(v[0], -256);
  EXPECT_EQ(v[1], 254);
}

TEST(WeightTypes, Q4KScalesOfAllEightRuns) {
  // Run r has scale r + 33 and min r + 17; every nibble is 1: 1 * scale - 0.5 * min.
  std::vector<std::byte> block = Bytes({0x00, 0x3c, 0x00, 0x38});
  block.resize(144);
  for (int r = 0; r < 8; ++r) {
    const int scale = r + 33;
    const int min = r + 17;
    if (r < 4) {
      block[4 + r] |= static_cast<std::byte>(scale);
      block[8 + r] |= static_cast<std::byte>(min);
    } else {
      block[8 + r] |= static_cast<std::byte>((scale & 15) | (min & 15) << 4);
      block[r] |= static_cast<std::byte>((scale >> 4) << 6);
      block[4 + r] |= static_cast<std::byte>((min >> 4) << 6);
    }
  }
  for (size_t i = 16; i < 144; ++i) block[i] = std::byte{0x11};
  const std::vector<float> v = Decode(WeightType::kQ4_K, 256, block);
  for (int r = 0; r < 8; ++r) {
    EXPECT_EQ(v[static_cast<size_t>(r * 32)], (r + 33) - 0.5f * (r + 17)) << r;
    EXPECT_EQ(v[static_cast<size_t>(r * 32 + 31)], (r + 33) - 0.5f * (r + 17)) << r;
  }
}

TEST(WeightTypes, Q6KHighBitsAndScales) {
  std::vector<std::byte> block(210);
  block[208] = std::byte{0x00};
  block[209] = std::byte{0x3c};
  for (int s = 0; s < 16; ++s) block[192 + s] = static_cast<std::byte>(s + 1);
  block[128] = std::byte{0xe4};  // value 0 of runs 0 ... 3 gets high bits 0, 1, 2, 3
  const std::vector<float> v = Decode(WeightType::kQ6_K, 256, block);
  EXPECT_EQ(v[0], 1 * (0 - 32));
  EXPECT_EQ(v[32], 3 * (16 - 32));
  EXPECT_EQ(v[64], 5 * (32 - 32));
  EXPECT_EQ(v[96], 7 * (48 - 32));
  EXPECT_EQ(v[16], 2 * (0 - 32));
  EXPECT_EQ(v[128 + 112], 16 * (0 - 32));
}

TEST(WeightTypes, RowsAreCheckedAgainstTheMatrix) {
  const std::vector<std::byte> data(2 * 34);
  const WeightView weight{WeightType::kQ8_0, 2, 32, data};
  std::vector<float> out(32);
  EXPECT_OK(DequantizeRows(weight, 1, out));
  EXPECT_THAT(DequantizeRows(weight, 2, out), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(DequantizeRows(weight, -1, out), StatusIs(absl::StatusCode::kInvalidArgument));
  out.resize(31);
  EXPECT_THAT(DequantizeRows(weight, 0, out), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(DequantizeRows({WeightType::kQ8_0, 1, 33, data}, 0, out),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(WeightTypes, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(Bf16ToFloat(FloatToBf16(INFINITY)), INFINITY);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(NAN))));
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(WeightTypes, Fp16RoundTripsEveryValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Fp16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(FloatToFp16(value), bits) << std::hex << bits;
  }
  EXPECT_EQ(FloatToFp16(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToFp16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToFp16(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToFp16(1e-10f), 0);
}

TEST(WeightTypes, GgufIdsFindTheirType) {
  EXPECT_EQ(WeightTypeFromGguf(3), WeightType::kQ4_1);
  EXPECT_EQ(WeightTypeFromGguf(30), WeightType::kBF16);
  EXPECT_EQ(WeightTypeFromGguf(10), std::nullopt);
  EXPECT_EQ(InfoOf(WeightType::kQ6_K).name, "Q6_K");
}

}  // namespace
}  // namespace loopserve::worker
