#include "kvstore/int8_vector.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace loopserve::kvstore {
namespace {

std::vector<int8_t> Codes(const std::vector<float>& values) {
  std::vector<int8_t> codes(values.size(), 99);
  Int8Encode(values.data(), values.size(), Int8ScaleOf(values.data(), values.size()), codes.data());
  return codes;
}

TEST(Int8VectorTest, TheLargestMagnitudeIs127AndTiesGoToEven) {
  EXPECT_EQ(Codes({-254, 254, 0, 1, 3, 5, -1}), (std::vector<int8_t>{-127, 127, 0, 0, 2, 2, 0}));
  EXPECT_EQ(Codes({-1}), std::vector<int8_t>{-127});
  EXPECT_EQ(Codes({}), std::vector<int8_t>{});
}

TEST(Int8VectorTest, DecodedValuesAreWithinHalfAStep) {
  std::mt19937 random(1);
  for (const size_t count : {1, 7, 64, 80, 129}) {
    std::normal_distribution<float> normal(0, std::exp(float(count % 5)));
    std::vector<float> values(count), back(count);
    for (float& value : values) value = normal(random);
    const float scale = Int8ScaleOf(values.data(), count);
    Int8Decode(Codes(values).data(), count, scale, back.data());
    for (size_t i = 0; i < count; ++i) EXPECT_NEAR(back[i], values[i], 0.5001f * scale);
  }
}

TEST(Int8VectorTest, ZeroAndTinyVectorsAreZeros) {
  for (const float value : {0.0f, -0.0f, 1e-39f, 1e-35f}) {
    EXPECT_EQ(Int8ScaleOf(&value, 1), 0.0f);
    EXPECT_EQ(Codes({value, -value}), (std::vector<int8_t>{0, 0}));
  }
}

TEST(Int8VectorTest, WhatIsNotFiniteShowsInTheScale) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    const std::vector<float> values = {1, bad, 2};
    EXPECT_FALSE(std::isfinite(Int8ScaleOf(values.data(), 3)));
    EXPECT_EQ(Codes(values), std::vector<int8_t>(3, 0));
  }
  const float huge = 3e38f;
  EXPECT_TRUE(std::isfinite(Int8ScaleOf(&huge, 1)));
  EXPECT_EQ(Codes({huge}), std::vector<int8_t>{127});
}

}  // namespace
}  // namespace loopserve::kvstore
