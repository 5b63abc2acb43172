#include "worker/engine/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/error.h"
#include "gtest/gtest.h"
#include "worker/backend/row_sampler.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// What the sampler plans for these logits, chosen and read.
SampledToken Choose(const Sampler& sampler, std::vector<float> logits, uint64_t position = 0,
                    const std::vector<TokenId>& guessed = {},
                    const std::vector<TokenId>& banned = {}) {
  SamplingPlan plan;
  sampler.Plan(position, guessed, banned, plan);
  RowChoice choice;
  const auto vocab = static_cast<int64_t>(logits.size());
  EXPECT_TRUE(
      RowSampler().Sample({logits.data(), 1, vocab, vocab}, plan.view(), {&choice, 1}).ok());
  return sampler.Read(choice);
}

TokenId One(const SamplingParams& params, const std::vector<float>& logits, uint64_t position = 0,
            uint64_t seed = 7) {
  return Choose(Sampler(params, seed, {}), logits, position).token;
}

std::map<TokenId, int> Draws(const SamplingParams& params, const std::vector<float>& logits,
                             int n = 4000) {
  Sampler sampler(params, 42, {});
  std::map<TokenId, int> counts;
  for (int i = 0; i < n; ++i) ++counts[Choose(sampler, logits, static_cast<uint64_t>(i)).token];
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
  const Sampler a(Hot(), 5, {});
  for (uint64_t p = 0; p < 50; ++p) Choose(a, logits, p);
  EXPECT_EQ(Choose(a, logits, 17).token, One(Hot(), logits, 17, 5));
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
  EXPECT_EQ(Choose(positive, {3, 2}, 0).token, 1);
  Sampler negative(params, 0, context);
  EXPECT_EQ(Choose(negative, {-1, -1.5f}, 0).token, 1);
}

TEST(Penalties, PresenceOnceFrequencyEachTime) {
  SamplingParams presence;
  presence.presence_penalty = 1;
  Sampler a(presence, 0, {});
  EXPECT_EQ(Choose(a, {3, 1.5f}, 0).token, 0);
  a.Accept(0);
  a.Accept(0);
  EXPECT_EQ(Choose(a, {3, 1.5f}, 1).token, 0);
  EXPECT_EQ(Choose(a, {2.4f, 1.5f}, 1).token, 1);

  SamplingParams frequency;
  frequency.frequency_penalty = 1;
  Sampler b(frequency, 0, {});
  b.Accept(0);
  EXPECT_EQ(Choose(b, {3, 1.5f}, 0).token, 0);
  b.Accept(0);
  EXPECT_EQ(Choose(b, {3, 1.5f}, 0).token, 1);
}

TEST(Banned, CannotBeChosen) {
  Sampler sampler({}, 0, {});
  const std::vector<TokenId> banned = {1};
  EXPECT_EQ(Choose(sampler, {0, 3, 1}, 0, {}, banned).token, 2);
}

TEST(Logprobs, AreThoseOfTheAdjustedDistributionBestFirst) {
  SamplingParams params;
  params.logprobs = 2;
  Sampler sampler(params, 0, {});
  const SampledToken out =
      Choose(sampler, {std::log(0.2f), std::log(0.5f), std::log(0.2f), kNan}, 0);
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
  EXPECT_EQ(Choose(sampler, {1, 2}, 0).top.size(), 2u);
}

TEST(Plan, AGuessCountsAsIfItHadBeenAccepted) {
  SamplingParams params;
  params.temperature = 1;
  params.repetition_penalty = 1.3F;
  params.presence_penalty = 0.4F;
  params.frequency_penalty = 0.3F;
  params.logit_bias = {{1, 0.5F}, {4, -0.25F}};
  params.logprobs = 5;
  const std::vector<TokenId> context = {0, 3}, guess = {3, 2, 4, 3, 3, 5};
  Sampler ahead(params, 9, context), behind(params, 9, context);
  for (size_t i = 0; i <= guess.size(); ++i) {
    const std::vector<TokenId> known(guess.begin(), guess.begin() + static_cast<ptrdiff_t>(i));
    const std::vector<float> logits = {1, -1, 0.5F, 2, -0.5F, 0};
    const SampledToken guessed = Choose(ahead, logits, 100 + i, known);
    const SampledToken sampled = Choose(behind, logits, 100 + i);
    EXPECT_EQ(guessed.token, sampled.token) << i;
    EXPECT_EQ(guessed.logprob, sampled.logprob) << i;
    for (size_t t = 0; t < 5; ++t) EXPECT_EQ(guessed.top[t].logprob, sampled.top[t].logprob);
    if (i < guess.size()) behind.Accept(guess[i]);
  }
}

TEST(Plan, HasOneAdjustmentForEachToken) {
  SamplingParams params;
  params.presence_penalty = 1;
  params.logit_bias = {{1, 2.0F}, {1, 3.0F}, {7, 1.0F}};
  Sampler sampler(params, 0, {});
  sampler.Accept(1);
  SamplingPlan plan;
  sampler.Plan(0, {}, {}, plan);
  sampler.Plan(1, std::vector<TokenId>{1, 8, 8}, std::vector<TokenId>{7, 8, 9, 9}, plan);
  ASSERT_EQ(plan.rows.size(), 2u);
  EXPECT_EQ(plan.rows[0].adjustments, 2u);
  EXPECT_EQ(plan.rows[1].first_adjustment, 2u);
  std::map<TokenId, TokenAdjustment> second;
  for (const TokenAdjustment& one : plan.view().AdjustmentsOf(plan.rows[1])) {
    EXPECT_TRUE(second.emplace(one.token, one).second) << "twice: " << one.token;
  }
  ASSERT_EQ(second.size(), 4u);
  EXPECT_EQ(second[1].bias, 5);
  EXPECT_EQ(second[1].penalty, 1) << "presence, however often";
  for (const TokenId banned : {7, 8, 9}) EXPECT_EQ(second[banned].bias, -kInf);
}

TEST(Plan, WithoutPenaltiesNothingIsSentForWhatWasGenerated) {
  Sampler sampler(Hot(), 0, {});
  for (TokenId token = 0; token < 9; ++token) sampler.Accept(token);
  SamplingPlan plan;
  sampler.Plan(0, std::vector<TokenId>{3}, {}, plan);
  EXPECT_TRUE(plan.adjustments.empty());
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
