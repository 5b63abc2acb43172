#include "worker/engine/speculation.h"

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using Tokens = std::vector<common::TokenId>;

TEST(SpeculationOptions, Parse) {
  ASSERT_OK_AND_ASSIGN(SpeculationOptions options, SpeculationOptions::Parse("off"));
  EXPECT_EQ(options.max_rows, 0);
  ASSERT_OK_AND_ASSIGN(options, SpeculationOptions::Parse("auto"));
  EXPECT_GT(options.max_rows, 0);
  EXPECT_TRUE(options.adaptive);
  ASSERT_OK_AND_ASSIGN(options, SpeculationOptions::Parse("5"));
  EXPECT_EQ(options.max_rows, 5);
  EXPECT_FALSE(options.adaptive);
  for (const char* bad : {"", "on", "0", "-1", "33"}) {
    EXPECT_FALSE(SpeculationOptions::Parse(bad).ok()) << bad;
  }
}

TEST(GuessRate, FollowsWhatHappens) {
  GuessRate rate;
  for (int i = 0; i < 40; ++i) rate.Observe(4, 3, true);
  EXPECT_GT(rate.rate(4), 0.99);
  for (int i = 0; i < 40; ++i) rate.Observe(4, 0, false);
  EXPECT_LT(rate.rate(4), 0.01);
  for (int i = 0; i < 40; ++i) rate.Observe(4, 3, false);
  EXPECT_NEAR(rate.rate(4), 0.75, 0.1);
}

TEST(GuessRate, MatchesOfOtherLengthsAreJudgedApart) {
  GuessRate rate;
  const double before = rate.rate(2);
  rate.Observe(4, 0, false);
  EXPECT_EQ(rate.rate(2), before);
}

TEST(Guesser, IsJudgedByWhatComes) {
  Guesser guesser(100);
  Tokens text = {1, 2, 3, 4, 5, 1, 2, 3, 4};
  guesser.Guess(text, 3);
  EXPECT_EQ(Tokens(guesser.guess().begin(), guesser.guess().end()), (Tokens{5, 1, 2}));
  const double before = guesser.rate();
  text.push_back(5);
  guesser.Judge(text, 1);
  EXPECT_GT(guesser.rate(), before);
  guesser.Guess(text, 3);
  text.push_back(9);
  const double right = guesser.rate();
  guesser.Judge(text, 1);
  EXPECT_LT(guesser.rate(), right);
  // Two tokens came, the second otherwise than guessed; more came than were guessed.
  text = {1, 2, 3, 4, 5, 1, 2, 3, 4};
  Guesser other(100);
  other.Guess(text, 1);
  text.insert(text.end(), {5, 7, 7});
  other.Judge(text, 3);
  EXPECT_GT(other.rate(), before) << "what was not guessed is not held against it";
}

TEST(Guesser, NoGuessNoRate) {
  Guesser guesser(10);
  const Tokens text = {1, 2, 3};
  guesser.Guess(text, 3);
  EXPECT_TRUE(guesser.guess().empty());
  EXPECT_EQ(guesser.rate(), 0);
  guesser.Judge(text, 1);
}

// Up to 8 rows cost 10 ms, each further one 1 ms.
StepCost FlatThenSteep() {
  StepCost cost;
  for (int i = 0; i < 300; ++i) {
    const int64_t rows = int64_t{1} << (i % 8);
    cost.Observe({.rows = rows}, absl::Milliseconds(10 + std::max<int64_t>(0, rows - 8)));
  }
  return cost;
}

int64_t Best(double rate, int64_t batch, int64_t most = 12) {
  StepShape step{.rows = batch};
  double tokens = static_cast<double>(batch);
  const int64_t rows = BestDraftRows(FlatThenSteep(), 100, rate, most, step, tokens);
  EXPECT_EQ(step.rows, batch + rows);
  EXPECT_GE(tokens, static_cast<double>(batch));
  return rows;
}

TEST(BestDraftRows, FreeRowsAreUsed) {
  EXPECT_GE(Best(0.9, 1), 6);
  EXPECT_EQ(Best(0.9, 1, 3), 3);
  EXPECT_GT(Best(0.4, 1), 0);
}

TEST(BestDraftRows, DearRowsAreNot) {
  EXPECT_EQ(Best(0.3, 16), 0) << "everybody would wait for one that is unlikely";
  EXPECT_EQ(Best(0, 1), 0);
  EXPECT_EQ(Best(0.01, 1), 0) << "hardly a gain";
}

TEST(BestDraftRows, AnUnknownCostIsNone) {
  StepShape step{.rows = 1};
  double tokens = 1;
  EXPECT_EQ(BestDraftRows(StepCost(), 10, 0.5, 5, step, tokens), 5);
}

}  // namespace
}  // namespace loopserve::worker
