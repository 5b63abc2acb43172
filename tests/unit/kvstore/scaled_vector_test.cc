#include "kvstore/scaled_vector.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "common/e4m3.h"

namespace loopserve::kvstore {
namespace {

struct Encoded {
  explicit Encoded(KvDtype dtype, const std::vector<float>& values)
      : codes(values.size(), std::byte{99}),
        scale(EncodeVector(dtype, values.data(), values.size(), codes.data())),
        numbers(values.size()),
        decoded(values.size()) {
    DecodeVector(dtype, codes.data(), codes.size(), 1, numbers.data());
    DecodeVector(dtype, codes.data(), codes.size(), scale, decoded.data());
  }
  std::vector<std::byte> codes;
  float scale;
  std::vector<float> numbers;
  std::vector<float> decoded;
};

using Numbers = std::vector<float>;

std::vector<float> Random(std::mt19937& random, size_t count, float spread = 1) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(ScaledVectorTest, Int8sLargestMagnitudeIs127AndTiesGoToEven) {
  const auto numbers = [](const Numbers& of) { return Encoded(KvDtype::kInt8, of).numbers; };
  EXPECT_EQ(numbers({-254, 254, 0, 1, 3, 5, -1}), (Numbers{-127, 127, 0, 0, 2, 2, 0}));
  EXPECT_EQ(numbers({-1}), Numbers{-127});
  EXPECT_EQ(numbers({}), Numbers{});
}

TEST(ScaledVectorTest, Fp8sLargestMagnitudeIs448AndTiesGoToEven) {
  const auto numbers = [](const Numbers& of) { return Encoded(KvDtype::kFp8, of).numbers; };
  // Next to 448 numbers are 32 apart, next to 16 two; the smallest is 2^-9.
  EXPECT_EQ(numbers({-896, 896, 0, 800, 864, 33, 35, -0x1p-8f, 0x1p-9f}),
            (Numbers{-448, 448, 0, 384, 448, 16, 18, -0x1p-9f, 0}));
  EXPECT_EQ(numbers({-1}), Numbers{-448});
  EXPECT_EQ(numbers({}), Numbers{});
}

TEST(ScaledVectorTest, DecodedInt8IsWithinHalfAStep) {
  std::mt19937 random(1);
  for (const size_t count : {1, 7, 64, 80, 129}) {
    const auto values = Random(random, count, std::exp(float(count % 5)));
    const Encoded of(KvDtype::kInt8, values);
    for (size_t i = 0; i < count; ++i) EXPECT_NEAR(of.decoded[i], values[i], 0.5001f * of.scale);
  }
}

TEST(ScaledVectorTest, DecodedFp8IsWithinASixteenth) {
  std::mt19937 random(1);
  for (const size_t count : {1, 7, 64, 80, 129}) {
    const auto values = Random(random, count, std::exp(float(count % 5)));
    const Encoded of(KvDtype::kFp8, values);
    for (size_t i = 0; i < count; ++i) {
      const float of_value = std::abs(values[i]) / 16.0f;
      EXPECT_NEAR(of.decoded[i], values[i], std::max(of_value, 0x1p-10f * of.scale) * 1.0001f);
    }
  }
}

class ScaledDtypeTest : public ::testing::TestWithParam<KvDtype> {};
INSTANTIATE_TEST_SUITE_P(All, ScaledDtypeTest, ::testing::Values(KvDtype::kInt8, KvDtype::kFp8),
                         [](const auto& info) { return std::string(DtypeName(info.param)); });

TEST_P(ScaledDtypeTest, ZeroAndTinyVectorsAreZeros) {
  for (const float value : {0.0f, -0.0f, 1e-39f, 1e-35f}) {
    const Encoded of(GetParam(), {value, -value});
    EXPECT_EQ(of.scale, 0.0f);
    EXPECT_EQ(of.numbers, (Numbers{0, 0}));
  }
}

TEST_P(ScaledDtypeTest, WhatIsNotFiniteShowsInTheScale) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    const Encoded of(GetParam(), {1, bad, 2});
    EXPECT_FALSE(std::isfinite(of.scale));
    EXPECT_EQ(of.codes, std::vector<std::byte>(3, std::byte{0}));
  }
  const Encoded huge(GetParam(), {3e38f, -3.4e38f});
  EXPECT_TRUE(std::isfinite(huge.scale));
  EXPECT_EQ(huge.numbers[1], GetParam() == KvDtype::kInt8 ? -127 : -448);
}

TEST_P(ScaledDtypeTest, CodesOfWhatWasDecodedAreTheSame) {
  std::mt19937 random(2);
  for (int i = 0; i < 100; ++i) {
    const Encoded once(GetParam(), Random(random, 64));
    EXPECT_EQ(Encoded(GetParam(), once.decoded).codes, once.codes);
  }
}

TEST_P(ScaledDtypeTest, WhatIsEncodedIsNumbers) {
  std::mt19937 random(3);
  for (int i = 0; i < 100; ++i) {
    const Encoded of(GetParam(), Random(random, 33, std::exp(float(i % 9 - 4))));
    EXPECT_TRUE(AreNumbers(GetParam(), of.codes.data(), of.codes.size()));
  }
}

TEST(ScaledVectorTest, OnlyFp8HasCodesOfNaN) {
  for (int code = 0; code < 256; ++code) {
    const std::byte codes[] = {std::byte{1}, static_cast<std::byte>(code), std::byte{2}};
    EXPECT_TRUE(AreNumbers(KvDtype::kInt8, codes, 3));
    EXPECT_EQ(AreNumbers(KvDtype::kFp8, codes, 3), code != 0x7f && code != 0xff) << code;
  }
}

// The square root of the mean square error, relative to that of the values.
double RelativeError(KvDtype dtype, const std::function<std::vector<float>()>& next) {
  double error = 0, square = 0;
  for (int n = 0; n < 500; ++n) {
    const std::vector<float> values = next();
    const Encoded of(dtype, values);
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(double{of.decoded[i]} - double{values[i]}, 2);
      square += std::pow(double{values[i]}, 2);
    }
  }
  return std::sqrt(error / square);
}

// Which of the two to choose, as they take the same bytes. Steps of int8 are all of one size, 1/127
// of the largest value; those of an E4M3 number are 1/16 ... 1/8 of the number, and the largest
// value of a vector has no error. So int8 is nearer as long as the largest value is less than about
// 11 times the root mean square of the others.
TEST(ScaledVectorTest, Int8IsNearerUnlessOneValueIsFarLargerThanTheOthers) {
  std::mt19937 random(4);
  struct Case {
    float outlier;
    double int8, fp8;  // measured, rounded up
  };
  for (const Case& c : {Case{1, 0.0065, 0.0262}, {10, 0.0172, 0.0201}, {30, 0.0243, 0.0095}}) {
    const auto next = [&] {
      std::vector<float> values = Random(random, 128);
      values[5] = c.outlier;
      return values;
    };
    const double int8 = RelativeError(KvDtype::kInt8, next);
    const double fp8 = RelativeError(KvDtype::kFp8, next);
    std::cout << "127 normal values and one of " << c.outlier << ": int8 errs " << int8 << ", fp8 "
              << fp8 << "\n";
    EXPECT_EQ(int8 < fp8, c.outlier < 11);
    EXPECT_LT(int8, c.int8);
    EXPECT_LT(fp8, c.fp8);
  }
}

}  // namespace
}  // namespace loopserve::kvstore
