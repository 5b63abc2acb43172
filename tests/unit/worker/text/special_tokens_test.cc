#include "worker/text/special_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;

constexpr common::TokenId kPlain = TextSpan::kPlain;

TEST(SpecialTokens, CutsTextAtSpellings) {
  SpecialTokens special;
  special.Add("<a>", 7);
  special.Add("<bb>", 8);
  EXPECT_THAT(special.Partition("x<a><bb>yz<a"),
              ElementsAre(TextSpan{0, 1, kPlain}, TextSpan{1, 4, 7}, TextSpan{4, 8, 8},
                          TextSpan{8, 12, kPlain}));
  EXPECT_THAT(special.Partition("<a>"), ElementsAre(TextSpan{0, 3, 7}));
  EXPECT_THAT(special.Partition(""), ElementsAre());
}

TEST(SpecialTokens, LongerSpellingsWinEverywhere) {
  SpecialTokens special;
  special.Add("  ", 2);
  special.Add("   x", 3);
  // Leftmost first would take the spaces from the left and lose "   x".
  EXPECT_THAT(special.Partition("     x"), ElementsAre(TextSpan{0, 2, 2}, TextSpan{2, 6, 3}));
}

TEST(SpecialTokens, OccurrencesDoNotOverlap) {
  SpecialTokens special;
  special.Add("aa", 1);
  EXPECT_THAT(special.Partition("aaaaa"),
              ElementsAre(TextSpan{0, 2, 1}, TextSpan{2, 4, 1}, TextSpan{4, 5, kPlain}));
}

TEST(SpecialTokens, DoesNotReachOverATokenAlreadyFound) {
  SpecialTokens special;
  special.Add("bcd", 1);
  special.Add("ae", 2);
  EXPECT_THAT(special.Partition("abcde"),
              ElementsAre(TextSpan{0, 1, kPlain}, TextSpan{1, 4, 1}, TextSpan{4, 5, kPlain}));
}

TEST(SpecialTokens, WithoutSpellingsAllIsPlain) {
  EXPECT_THAT(SpecialTokens().Partition("<|im_end|>"), ElementsAre(TextSpan{0, 10, kPlain}));
}

}  // namespace
}  // namespace loopserve::worker
