#include "worker/backend/row_sampler.h"

#include <algorithm>
#include <numeric>

#include "gtest/gtest.h"
#include "tests/support/sampling_rows.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/sampling_math.h"

namespace loopserve::worker {
namespace {

using common::TokenId;
using ::loopserve::testing::AnySampling;
using ::loopserve::testing::Difference;
using ::loopserve::testing::SampledLogits;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::WordsOf;

// The definition, by sorting.
RowChoice SlowChoice(const std::vector<float>& scores, const RowSampling& how) {
  std::vector<TokenId> best(scores.size());
  std::iota(best.begin(), best.end(), 0);
  const auto score = [&](TokenId id) { return scores[static_cast<size_t>(id)]; };
  std::ranges::stable_sort(best, std::greater<>(), [&](TokenId id) { return OrderOf(score(id)); });
  RowChoice out{.token = best[0],
                .top = FiniteOf(ScoreOf(OrderOf(score(best[0])))),
                .alternatives = static_cast<uint32_t>(
                    std::min(scores.size(), static_cast<size_t>(std::max(0, how.logprobs))))};
  for (const float one : scores) out.total_weight += WeightOf(one, out.top, 1);
  for (uint32_t i = 0; i < out.alternatives; ++i) {
    out.best[i] = best[i];
    out.best_scores[i] = score(best[i]);
  }
  if (how.inverse_temperature > 0 && out.top > -HUGE_VALF) {
    const auto weigh = [&](TokenId id) {
      return WeightOf(score(id), out.top, how.inverse_temperature);
    };
    const auto sum = [&] {
      return std::accumulate(best.begin(), best.end(), uint64_t{0},
                             [&](uint64_t all, TokenId id) { return all + weigh(id); });
    };
    if (how.top_k > 0 && how.top_k < best.size()) best.resize(how.top_k);
    if (how.top_p < 1) {
      const uint64_t wanted = NucleusWeight(how.top_p, sum());
      size_t kept = 0;
      for (uint64_t covered = 0; covered < wanted; ++kept) covered += weigh(best[kept]);
      best.resize(kept);
    }
    std::erase_if(best, [&](TokenId id) { return weigh(id) < how.least_weight; });
    std::ranges::sort(best);
    uint64_t part = DrawnPart(how.draw, sum());
    size_t at = 0;
    for (; part >= weigh(best[at]); ++at) part -= weigh(best[at]);
    out.token = best[at];
  }
  out.score = score(out.token);
  return out;
}

TEST(RowSampler, ChoosesAsTheDefinitionDoes) {
  RowSampler sampler;
  for (const size_t vocab : {1u, 2u, 31u, 64u, 65u, 1000u, 5000u}) {
    for (uint32_t seed = 0; seed < 200; ++seed) {
      std::vector<float> logits = SampledLogits(vocab, seed);
      const RowSampling how = AnySampling(seed * 31 + static_cast<uint32_t>(vocab));
      const RowChoice expected = SlowChoice(logits, how);
      RowChoice choice;
      const auto cols = static_cast<int64_t>(vocab);
      ASSERT_OK(sampler.Sample({logits.data(), 1, cols, cols}, {.rows = {&how, 1}}, {&choice, 1}));
      ASSERT_EQ(Difference(how, choice, expected), "")
          << vocab << " tokens, seed " << seed << ", " << WordsOf(how);
    }
  }
}

TEST(RowSampler, RowsHaveAdjustmentsOfTheirOwn) {
  std::vector<float> logits = {0, 1, 2, 9, 0, 1, 2, 9, 0, 1, 2, 9};
  const std::vector<TokenAdjustment> adjustments = {
      {.token = 1, .bias = 5}, {.token = 2, .bias = -HUGE_VALF}, {.token = 0, .bias = 4}};
  const std::vector<RowSampling> rows = {
      {.first_adjustment = 0, .adjustments = 1}, {}, {.first_adjustment = 1, .adjustments = 2}};
  std::vector<RowChoice> choices(3);
  RowSampler sampler;
  // Rows of three tokens, four apart.
  ASSERT_OK(sampler.Sample({logits.data(), 3, 3, 4}, {rows, adjustments}, choices));
  EXPECT_EQ(choices[0].token, 1);
  EXPECT_EQ(choices[1].token, 2);
  EXPECT_EQ(choices[2].token, 0);
}

TEST(RowSampler, NoRowsAreNoError) {
  RowSampler sampler;
  EXPECT_OK(sampler.Sample({nullptr, 0, 100, 100}, {}, {}));
}

TEST(CheckSampling, RefusesWhatDoesNotFit) {
  std::vector<float> logits(20);
  const TensorView view{logits.data(), 2, 10, 10};
  std::vector<RowSampling> rows(2);
  std::vector<TokenAdjustment> adjustments(3);
  std::vector<RowChoice> choices(2);
  const auto refuses = [&](const TensorView& v) {
    return CheckSampling(v, {rows, adjustments}, choices).code() ==
           absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refuses(view));
  EXPECT_TRUE(refuses(view.Rows(0, 1)));
  EXPECT_TRUE(refuses(view.Cols(0, 0))) << "no vocabulary";
  EXPECT_TRUE(refuses({logits.data(), 2, kMostSampledTokens + 1, kMostSampledTokens + 1}));
  EXPECT_TRUE(refuses({logits.data(), 2, 10, 10, ActivationType::kBf16}));
  choices.resize(1);
  EXPECT_TRUE(refuses(view));
  choices.resize(2);
  rows[1].logprobs = kMaxLogprobs + 1;
  EXPECT_TRUE(refuses(view));
  rows[1] = {.first_adjustment = 2, .adjustments = 2};
  EXPECT_TRUE(refuses(view));
  rows[1] = {.first_adjustment = 4};
  EXPECT_TRUE(refuses(view));
  rows[1] = {.first_adjustment = 1, .adjustments = ~uint32_t{0}};
  EXPECT_TRUE(refuses(view));
  rows[1] = {};
  for (const TokenId token : {-1, 10}) {
    adjustments[2].token = token;
    EXPECT_TRUE(refuses(view)) << token;
  }
}

}  // namespace
}  // namespace loopserve::worker
