#include "worker/backend/sampling_math.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();

TEST(OrderOf, AscendsWithTheScore) {
  const std::vector<float> ascending = {-kInf,  -kMost, -2,   -1,   -1e-40F, 0,
                                        1e-40F, 1e-3F,  1.0F, 1.5F, kMost,   kInf};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_LT(OrderOf(ascending[i - 1]), OrderOf(ascending[i])) << ascending[i];
  }
  for (const float score : ascending) EXPECT_EQ(ScoreOf(OrderOf(score)), score);
  EXPECT_EQ(OrderOf(-0.0F), OrderOf(0.0F));
  EXPECT_EQ(OrderOf(kNan), OrderOf(-kInf));
  EXPECT_EQ(OrderOf(-kNan), OrderOf(-kInf));
}

TEST(WeightOf, IsTheExponentialOfTheDistance) {
  for (const float inverse : {0.5F, 1.0F, 3.0F}) {
    for (float score = 5; score > -60; score -= 0.0371F) {
      const double exact = std::exp((static_cast<double>(score) - 5) * inverse);
      const double weight = static_cast<double>(WeightOf(score, 5, inverse));
      const double unit = static_cast<double>(kFullWeight);
      EXPECT_NEAR(weight, exact * unit, 2e-6 * exact * unit + 1) << score << " " << inverse;
    }
  }
}

TEST(WeightOf, KnowsTheEnds) {
  EXPECT_EQ(WeightOf(5, 5, 1), kFullWeight);
  EXPECT_EQ(WeightOf(5, 5, kMost), kFullWeight);
  EXPECT_EQ(WeightOf(4.999F, 5, kMost), 0u);
  EXPECT_EQ(WeightOf(kNan, 5, 1), 0u);
  EXPECT_EQ(WeightOf(-kInf, 5, 1), 0u);
  EXPECT_EQ(WeightOf(-kMost, kMost, 1e-3F), 0u);
  EXPECT_EQ(WeightOf(kInf, kMost, 1), kFullWeight) << "as the largest finite number";
  EXPECT_EQ(WeightOf(-kInf, -kInf, 1), 0u) << "nothing is finite";
  EXPECT_LE(kMostSampledTokens, int64_t{1} << (64 - kWeightBits)) << "sums fit";
}

TEST(Adjusted, AddsThenScalesThenSubtracts) {
  EXPECT_EQ(Adjusted(3, {.bias = 1, .repetition = 2, .penalty = 0.5F}), 1.5F);
  EXPECT_EQ(Adjusted(-3, {.bias = 1, .repetition = 2, .penalty = 0.5F}), -4.5F);
  EXPECT_EQ(Adjusted(0.3F, {}), 0.3F);
  EXPECT_EQ(OrderOf(Adjusted(kInf, {.bias = -kInf})), OrderOf(-kInf)) << "banned all the same";
}

TEST(DrawnPart, CoversTheTotalEvenly) {
  constexpr uint64_t kLast = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(DrawnPart(0, 1000), 0u);
  EXPECT_EQ(DrawnPart(uint64_t{1} << 63, 1000), 500u);
  EXPECT_EQ(DrawnPart(kLast, 1000), 999u);
  EXPECT_EQ(DrawnPart(kLast, kLast), kLast - 1);
  EXPECT_EQ(DrawnPart(kLast, 0), 0u);
}

TEST(NucleusWeight, IsNeverNothing) {
  EXPECT_EQ(NucleusWeight(0.5F, 1000), 500u);
  EXPECT_EQ(NucleusWeight(1e-6F, 1000), 1u);
}

}  // namespace
}  // namespace loopserve::worker
