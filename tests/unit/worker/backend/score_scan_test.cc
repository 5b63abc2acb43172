#include "worker/backend/score_scan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "gtest/gtest.h"
#include "worker/backend/sampling_math.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> Scores(size_t count, uint32_t seed, float spread = 4) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> scores(count);
  for (float& score : scores) score = normal(random);
  return scores;
}

TokenId SlowBest(const std::vector<float>& scores) {
  size_t best = 0;
  float top = -kInf;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > top) top = scores[best = i];
  }
  return static_cast<TokenId>(best);
}

TEST(ScoreScan, FindsTheBest) {
  ScoreScan scan;
  for (size_t count : {1u, 3u, 63u, 64u, 65u, 128u, 1000u, 49152u}) {
    std::vector<float> scores = Scores(count, static_cast<uint32_t>(count));
    scan.Read(scores);
    EXPECT_EQ(scan.best(), SlowBest(scores)) << count;
    EXPECT_EQ(scan.top(), scores[static_cast<size_t>(scan.best())]);
    std::ranges::fill(scores, scores[0]);
    scan.Read(scores);
    EXPECT_EQ(scan.best(), 0) << "the lowest id among equals";
  }
}

TEST(ScoreScan, WhatIsNoNumberIsNeverTheBest) {
  ScoreScan scan;
  for (size_t at : {0u, 5u, 64u, 99u}) {
    std::vector<float> scores(100, kNan);
    scan.Read(scores);
    EXPECT_EQ(scan.best(), 0);
    EXPECT_EQ(scan.top(), -kInf);
    EXPECT_EQ(scan.TotalWeight(1), 0u);
    scores[at] = -7;
    scan.Read(scores);
    EXPECT_EQ(scan.best(), static_cast<TokenId>(at));
    EXPECT_EQ(scan.TotalWeight(1), kFullWeight);
    EXPECT_EQ(scan.Draw(kFullWeight / 2), static_cast<TokenId>(at));
    scores[(at + 1) % 100] = kInf;
    scan.Read(scores);
    EXPECT_EQ(scan.best(), static_cast<TokenId>((at + 1) % 100));
    EXPECT_EQ(scan.TotalWeight(1), kFullWeight);
  }
}

TEST(Gather, HoldsTheBest) {
  ScoreScan scan;
  std::vector<TokenId> found;
  for (size_t size : {10u, 1000u, 49152u}) {
    const std::vector<float> scores = Scores(size, 3);
    scan.Read(scores);
    std::vector<TokenId> order(size);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::sort(order, std::greater<>(),
                      [&](TokenId id) { return scores[static_cast<size_t>(id)]; });
    for (size_t count : {1u, 5u, 40u, 300u, 100000u}) {
      scan.Gather(count, found);
      EXPECT_TRUE(std::ranges::is_sorted(found));
      for (size_t i = 0; i < std::min(count, size); ++i) {
        ASSERT_TRUE(std::ranges::binary_search(found, order[i])) << i << " of " << count;
      }
    }
    if (size < 10000) continue;
    scan.Gather(40, found);
    EXPECT_LT(found.size(), 200u) << "and few others";
  }
}

TEST(Gather, TakesEverybodyWhereAllAreEqual) {
  ScoreScan scan;
  std::vector<TokenId> found;
  const std::vector<float> scores(200, 1.0f);
  scan.Read(scores);
  scan.Gather(3, found);
  EXPECT_EQ(found.size(), 200u);
}

TEST(TotalWeight, IsTheSumOfExponentials) {
  ScoreScan scan;
  for (const double temperature : {0.1, 0.7, 1.0, 2.0}) {
    for (uint32_t seed = 0; seed < 5; ++seed) {
      const std::vector<float> scores = Scores(5000 + seed, seed);
      scan.Read(scores);
      double expected = 0;
      for (const float score : scores) {
        expected += std::exp((static_cast<double>(score) - scan.top()) / temperature);
      }
      const auto total = static_cast<double>(scan.TotalWeight(static_cast<float>(1 / temperature)));
      EXPECT_NEAR(total / static_cast<double>(kFullWeight), expected, 2e-6 * expected);
    }
  }
}

TEST(TotalWeight, IsBitByBitTheSumOfTheWeights) {
  ScoreScan scan;
  for (const float inverse : {0.5F, 1.0F, 1.0F / 0.7F, 100.0F, std::numeric_limits<float>::max()}) {
    for (const size_t size : {1u, 31u, 64u, 1000u}) {
      std::vector<float> scores = Scores(size, static_cast<uint32_t>(size), 9);
      if (size > 40) scores[7] = kNan, scores[33] = -kInf, scores[40] = kInf;
      scan.Read(scores);
      uint64_t expected = 0;
      for (const float score : scores) expected += WeightOf(score, scan.top(), inverse);
      EXPECT_EQ(scan.TotalWeight(inverse), expected) << size << " at " << inverse;
    }
  }
}

TEST(Draw, PassesEveryTokenByItsWeight) {
  ScoreScan scan;
  const std::vector<float> scores = Scores(300, 9, 1);
  scan.Read(scores);
  const uint64_t total = scan.TotalWeight(1);
  uint64_t before = 0;
  for (size_t id = 0; id < scores.size(); ++id) {
    const uint64_t weight = WeightOf(scores[id], scan.top(), 1);
    EXPECT_EQ(scan.Draw(before), static_cast<TokenId>(id));
    EXPECT_EQ(scan.Draw(before + weight - 1), static_cast<TokenId>(id));
    before += weight;
  }
  EXPECT_EQ(before, total);
}

}  // namespace
}  // namespace loopserve::worker
