#include "worker/engine/ngram_draft.h"

#include <random>

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

using Tokens = std::vector<common::TokenId>;

struct Guess {
  size_t match = 0;
  Tokens draft;
};

Guess GuessAfter(const Tokens& text, size_t most = 4) {
  NgramDraft draft(text.size());
  draft.Extend(text);
  Guess guess;
  guess.match = draft.Propose(text, most, guess.draft);
  return guess;
}

TEST(NgramDraft, SaysNothingAboutWhatItHasNotSeen) {
  for (const Tokens& text : {Tokens{}, Tokens{1}, Tokens{1, 2}, Tokens{1, 2, 3, 4, 5, 2}}) {
    const Guess guess = GuessAfter(text);
    EXPECT_EQ(guess.match, 0u);
    EXPECT_TRUE(guess.draft.empty());
  }
}

TEST(NgramDraft, GoesOnAsBefore) {
  const Guess guess = GuessAfter({9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4}, 3);
  EXPECT_EQ(guess.match, 4u);
  EXPECT_EQ(guess.draft, (Tokens{5, 6, 7}));
}

TEST(NgramDraft, PrefersTheLongestMatch) {
  //                 3 5 -> 7             1 2 3 5 -> 6
  const Guess guess = GuessAfter({3, 5, 7, 1, 2, 3, 5, 6, 4, 3, 5, 8, 1, 2, 3, 5}, 1);
  EXPECT_EQ(guess.match, 4u);
  EXPECT_EQ(guess.draft, Tokens{6});
}

TEST(NgramDraft, PrefersTheNewestPlace) {
  const Guess guess = GuessAfter({1, 2, 3, 1, 2, 4, 1, 2}, 1);
  EXPECT_EQ(guess.match, 2u);
  EXPECT_EQ(guess.draft, Tokens{4});
}

TEST(NgramDraft, FollowsARepetitionBeyondTheEnd) {
  const Guess guess = GuessAfter({7, 1, 2, 3, 1, 2, 3, 1, 2}, 7);
  EXPECT_EQ(guess.draft, (Tokens{3, 1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(GuessAfter({5, 5, 5, 5, 5, 5}, 3).draft, (Tokens{5, 5, 5}));
}

TEST(NgramDraft, TokenByTokenIsTheSameAsAtOnce) {
  std::mt19937 random(3);
  Tokens text;
  NgramDraft draft(400);
  for (int i = 0; i < 400; ++i) {
    text.push_back(static_cast<common::TokenId>(random() % 6));
    draft.Extend(text);
    Tokens guess;
    const size_t match = draft.Propose(text, 5, guess);
    NgramDraft whole(400);
    whole.Extend(text);
    Tokens expected;
    EXPECT_EQ(match, whole.Propose(text, 5, expected));
    EXPECT_EQ(guess, expected);
  }
}

TEST(NgramDraft, EveryGuessWasSaidBefore) {
  std::mt19937 random(5);
  Tokens text;
  NgramDraft draft(16);  // far too small: hashes collide all the time
  for (int i = 0; i < 3000; ++i) {
    text.push_back(static_cast<common::TokenId>(random() % 40));
    draft.Extend(text);
    Tokens guess;
    const size_t match = draft.Propose(text, 1, guess);
    if (match == 0) continue;
    Tokens gram(text.end() - static_cast<std::ptrdiff_t>(match), text.end());
    gram.push_back(guess[0]);
    ASSERT_NE(std::search(text.begin(), text.end(), gram.begin(), gram.end()), text.end());
  }
}

}  // namespace
}  // namespace loopserve::worker
