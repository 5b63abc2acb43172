#include "worker/engine/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/error.h"
#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TokenId One(const SamplingParams& params, const std::vector<float>& logits, uint64_t position = 0,
            uint64_t seed = 7) {
  Sampler sampler(params, seed, {});
  return sampler.Sample(logits, position).token;
}

std::map<TokenId, int> Draws(const SamplingParams& params, const std::vector<float>& logits,
                             int n = 4000) {
  Sampler sampler(params, 42, {});
  std::map<TokenId, int> counts;
  for (int i = 0; i < n; ++i) ++counts[sampler.Sample(logits, static_cast<uint64_t>(i)).token];
  return counts;
}

SamplingParams Hot(float temperature = 1) {
  SamplingParams params;
  params.temperature = temperature;
  return params;
}

TEST(Greedy, TakesTheLargestAndTheLowestIdAmongEquals) {
  EXPECT_EQ(One({}, {0, 3, 1}), 1);
  EXPECT_EQ(One({}, {0, 3, 3}), 1);
  EXPECT_EQ(One({}, {-5, -5, -5}), 0);
}

TEST(Greedy, NeverChoosesNan) {
  EXPECT_EQ(One({}, {kNan, -3, kNan, -2}), 3);
  EXPECT_EQ(One({}, {kNan, kNan}), 0);
  EXPECT_EQ(One({}, {-kInf, -kInf}), 0);
  EXPECT_EQ(One({}, {1, kInf, 2}), 1);
}

TEST(Draw, IsAPureFunctionOfSeedAndPosition) {
  std::vector<float> logits(100);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  Sampler a(Hot(), 5, {});
  for (uint64_t p = 0; p < 50; ++p) a.Sample(logits, p);
  EXPECT_EQ(a.Sample(logits, 17).token, One(Hot(), logits, 17, 5));
  std::set<TokenId> over_positions, over_seeds;
  for (uint64_t i = 0; i < 50; ++i) {
    over_positions.insert(One(Hot(), logits, i, 5));
    over_seeds.insert(One(Hot(), logits, 5, i));
  }
  EXPECT_GT(over_positions.size(), 10u);
  EXPECT_GT(over_seeds.size(), 10u);
}

TEST(Draw, FollowsTheSoftmax) {
  const auto counts = Draws(Hot(), {std::log(0.5f), std::log(0.3f), std::log(0.2f)}, 20000);
  EXPECT_NEAR(counts.at(0) / 20000.0, 0.5, 0.02);
  EXPECT_NEAR(counts.at(1) / 20000.0, 0.3, 0.02);
  EXPECT_NEAR(counts.at(2) / 20000.0, 0.2, 0.02);
}

TEST(Draw, TemperatureSharpens) {
  const auto counts = Draws(Hot(0.5f), {std::log(0.5f), std::log(0.25f), std::log(0.25f)}, 20000);
  EXPECT_NEAR(counts.at(0) / 20000.0, 4.0 / 6, 0.02);
}

TEST(Draw, TinyTemperatureIsGreedyAndFinite) {
  EXPECT_EQ(Draws(Hot(1e-30f), {1, 2, 1.99f, kNan, -kInf}, 100).size(), 1u);
}

TEST(Draw, SurvivesNanAndInfinity) {
  for (const auto& [token, count] : Draws(Hot(), {kNan, 1, -kInf, 1})) {
    EXPECT_TRUE(token == 1 || token == 3) << token;
  }
  EXPECT_EQ(One(Hot(), {kNan, kNan}), 0);
  EXPECT_EQ(Draws(Hot(), {1, kInf, 3}, 100).begin()->first, 1);
}

TEST(TopK, KeepsTheBestLowestIdsAmongEquals) {
  SamplingParams params = Hot(2);
  params.top_k = 2;
  const auto counts = Draws(params, {1, 1.5f, 1.5f, 1.5f, 0});
  ASSERT_EQ(counts.size(), 2u);
  EXPECT_TRUE(counts.count(1) == 1 && counts.count(2) == 1);
}

TEST(TopK, LargerThanTheVocabularyIsAll) {
  SamplingParams params = Hot();
  params.top_k = 100;
  EXPECT_EQ(Draws(params, {1, 1, 1}).size(), 3u);
}

TEST(TopP, KeepsTheSmallestSetThatCovers) {
  SamplingParams params = Hot();
  const std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.3f)};
  params.top_p = 0.45f;
  EXPECT_EQ(Draws(params, logits).size(), 1u);
  params.top_p = 0.7f;
  EXPECT_EQ(Draws(params, logits).size(), 2u);
  params.top_p = 0.95f;
  EXPECT_EQ(Draws(params, logits).size(), 3u);
  params.top_p = 1e-6f;
  EXPECT_EQ(Draws(params, logits).begin()->first, 1);
}

TEST(TopP, CoversAFlatVocabulary) {
  SamplingParams params = Hot();
  params.top_p = 0.5f;
  const auto counts = Draws(params, std::vector<float>(1000, 0.0f), 20000);
  EXPECT_NEAR(static_cast<double>(counts.size()), 500, 1);
  EXPECT_LT(counts.rbegin()->first, 501);
}

TEST(MinP, DropsWhatIsFarBelowTheBest) {
  SamplingParams params = Hot();
  params.min_p = 0.5f;
  const auto counts = Draws(params, {std::log(0.5f), std::log(0.3f), std::log(0.2f)});
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_EQ(counts.count(2), 0u);
}

TEST(LogitBias, MovesTheChoice) {
  SamplingParams params;
  params.logit_bias = {{2, 100.0f}, {1, -100.0f}};
  EXPECT_EQ(One(params, {0, 3, 1}), 2);
}

TEST(Penalties, RepetitionCountsThePromptAndShrinksBothSigns) {
  SamplingParams params;
  params.repetition_penalty = 2;
  const std::vector<TokenId> context = {0};
  Sampler positive(params, 0, context);
  EXPECT_EQ(positive.Sample(std::vector<float>{3, 2}, 0).token, 1);
  Sampler negative(params, 0, context);
  EXPECT_EQ(negative.Sample(std::vector<float>{-1, -1.5f}, 0).token, 1);
}

TEST(Penalties, PresenceOnceFrequencyEachTime) {
  SamplingParams presence;
  presence.presence_penalty = 1;
  Sampler a(presence, 0, {});
  EXPECT_EQ(a.Sample(std::vector<float>{3, 1.5f}, 0).token, 0);
  a.Accept(0);
  a.Accept(0);
  EXPECT_EQ(a.Sample(std::vector<float>{3, 1.5f}, 1).token, 0);
  EXPECT_EQ(a.Sample(std::vector<float>{2.4f, 1.5f}, 1).token, 1);

  SamplingParams frequency;
  frequency.frequency_penalty = 1;
  Sampler b(frequency, 0, {});
  b.Accept(0);
  EXPECT_EQ(b.Sample(std::vector<float>{3, 1.5f}, 0).token, 0);
  b.Accept(0);
  EXPECT_EQ(b.Sample(std::vector<float>{3, 1.5f}, 0).token, 1);
}

TEST(Banned, CannotBeChosen) {
  Sampler sampler({}, 0, {});
  const std::vector<TokenId> banned = {1};
  EXPECT_EQ(sampler.Sample(std::vector<float>{0, 3, 1}, 0, banned).token, 2);
}

TEST(Logprobs, AreThoseOfTheAdjustedDistributionBestFirst) {
  SamplingParams params;
  params.logprobs = 2;
  Sampler sampler(params, 0, {});
  const SampledToken out =
      sampler.Sample(std::vector<float>{std::log(0.2f), std::log(0.5f), std::log(0.2f), kNan}, 0);
  EXPECT_EQ(out.token, 1);
  EXPECT_NEAR(out.logprob, std::log(0.5 / 0.9), 1e-5);
  ASSERT_EQ(out.top.size(), 2u);
  EXPECT_EQ(out.top[0].token, 1);
  EXPECT_EQ(out.top[1].token, 0);
  EXPECT_NEAR(out.top[1].logprob, std::log(0.2 / 0.9), 1e-5);
}

TEST(Logprobs, MoreThanTheVocabulary) {
  SamplingParams params;
  params.logprobs = 5;
  Sampler sampler(params, 0, {});
  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 2}, 0).top.size(), 2u);
}

// Every row: what is broken, and the field that the error names.
TEST(Validate, NamesTheField) {
  struct Row {
    std::string field;
    void (*break_it)(SamplingParams&);
  };
  const Row rows[] = {
      {"max_tokens", [](SamplingParams& p) { p.max_tokens = 0; }},
      {"temperature", [](SamplingParams& p) { p.temperature = -0.1f; }},
      {"temperature", [](SamplingParams& p) { p.temperature = 2.1f; }},
      {"temperature", [](SamplingParams& p) { p.temperature = kNan; }},
      {"top_p", [](SamplingParams& p) { p.top_p = 0; }},
      {"top_p", [](SamplingParams& p) { p.top_p = 1.01f; }},
      {"top_p", [](SamplingParams& p) { p.top_p = kNan; }},
      {"min_p", [](SamplingParams& p) { p.min_p = -0.1f; }},
      {"min_p", [](SamplingParams& p) { p.min_p = kInf; }},
      {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 2.5f; }},
      {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = -3; }},
      {"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = 2.1f; }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{100, 1.0f}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{-1, 1.0f}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{1, 101.0f}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{1, kNan}};
       }},
      {"stop", [](SamplingParams& p) { p.stop.resize(17, "x"); }},
      {"stop", [](SamplingParams& p) { p.stop = {""}; }},
      {"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids = {100}; }},
      {"min_tokens",
       [](SamplingParams& p) {
         p.max_tokens = 3;
         p.min_tokens = 4;
       }},
      {"logprobs", [](SamplingParams& p) { p.logprobs = 21; }},
  };
  for (const Row& row : rows) {
    SamplingParams params;
    row.break_it(params);
    const absl::Status status = ValidateSampling(params, 100);
    EXPECT_TRUE(common::HasReason(status, common::Reason::kInvalidField)) << row.field;
    EXPECT_EQ(common::InfoOf(status).field, "sampling." + row.field);
  }
}

TEST(Validate, AcceptsTheLimits) {
  SamplingParams params;
  EXPECT_TRUE(ValidateSampling(params, 100).ok());
  params.max_tokens = 1;
  params.temperature = 2;
  params.top_p = 1e-3f;
  params.min_p = 1;
  params.repetition_penalty = 2;
  params.presence_penalty = -2;
  params.frequency_penalty = 2;
  params.logit_bias = {{99, 100.0f}, {0, -100.0f}};
  params.stop.resize(16, "x");
  params.stop_token_ids = {0, 99};
  params.min_tokens = 1;
  params.logprobs = 20;
  EXPECT_TRUE(ValidateSampling(params, 100).ok());
}

}  // namespace
}  // namespace loopserve::worker
