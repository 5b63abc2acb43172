#include "common/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace loopserve::common {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The magnitudes of all codes, by the format's definition.
std::vector<double> Magnitudes() {
  std::vector<double> all;
  for (int code = 0; code < 0x7f; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    all.push_back(exponent == 0 ? std::ldexp(mantissa, -9)
                                : std::ldexp(8 + mantissa, exponent - 10));
  }
  return all;
}

// The code nearest to a number that is not negative; of two the even one.
int NearestCode(double value) {
  static const std::vector<double> all = Magnitudes();
  int best = 0;
  for (int code = 1; code < static_cast<int>(all.size()); ++code) {
    const double here = std::abs(all[static_cast<size_t>(code)] - value);
    const double there = std::abs(all[static_cast<size_t>(best)] - value);
    if (here < there || (here == there && code % 2 == 0)) best = code;
  }
  return best;
}

TEST(E4m3, AllCodesAreTheNumbersOfTheFormat) {
  const std::vector<double> all = Magnitudes();
  EXPECT_EQ(all.back(), kLargestE4m3);
  for (size_t code = 0; code < all.size(); ++code) {
    EXPECT_EQ(E4m3ToFloat(static_cast<uint8_t>(code)), all[code]) << code;
    EXPECT_EQ(E4m3ToFloat(static_cast<uint8_t>(code | 0x80)), -all[code]) << code;
  }
  EXPECT_TRUE(std::signbit(E4m3ToFloat(0x80)));
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0x7f)));
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0xff)));
}

TEST(E4m3, ACodeIsItsNumbersCode) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(FloatToE4m3(E4m3ToFloat(static_cast<uint8_t>(code))), code);
  }
}

TEST(E4m3, RoundsToTheNearestAndTiesToEven) {
  std::vector<float> values = {0, 1e-30f, std::numeric_limits<float>::denorm_min()};
  const std::vector<double> all = Magnitudes();
  for (size_t i = 0; i + 1 < all.size(); ++i) {
    const auto middle = static_cast<float>((all[i] + all[i + 1]) / 2);
    values.insert(values.end(), {middle, std::nextafter(middle, 0.0f),
                                 std::nextafter(middle, kInfinity), static_cast<float>(all[i])});
  }
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-12.0f, 8.8f);
  for (int i = 0; i < 20000; ++i) values.push_back(std::exp2(exponent(random)));
  for (const float value : values) {
    const int want = NearestCode(static_cast<double>(value));
    ASSERT_EQ(FloatToE4m3(value), want) << value;
    ASSERT_EQ(FloatToE4m3(-value), want | 0x80) << value;
  }
}

TEST(E4m3, WhatIsTooLargeBecomesTheLargest) {
  for (const float value :
       {448.0f, 463.9f, 464.0f, 480.0f, 1e9f, kInfinity, std::numeric_limits<float>::max()}) {
    EXPECT_EQ(FloatToE4m3(value), 0x7e) << value;
    EXPECT_EQ(FloatToE4m3(-value), 0xfe) << value;
  }
}

TEST(E4m3, NanStaysNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(FloatToE4m3(nan), 0x7f);
  EXPECT_EQ(FloatToE4m3(std::copysign(nan, -1.0f)), 0xff);
}

}  // namespace
}  // namespace loopserve::common
