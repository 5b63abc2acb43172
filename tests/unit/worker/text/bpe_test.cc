#include "worker/text/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace loopserve::worker {
namespace {

using common::TokenId;
using ::testing::ElementsAre;

std::vector<TokenId> Apply(const BpeMerges& merges, const std::vector<TokenId>& word) {
  std::vector<TokenId> out;
  merges.Apply(word, out);
  return out;
}

TEST(BpeMerges, LowestRankFirst) {
  BpeMerges merges;
  ASSERT_TRUE(merges.Add(2, 3, 23).ok());
  ASSERT_TRUE(merges.Add(1, 2, 12).ok());
  ASSERT_TRUE(merges.Add(12, 3, 123).ok());
  EXPECT_THAT(Apply(merges, {1, 2, 3}), ElementsAre(1, 23));
  EXPECT_THAT(Apply(merges, {1, 2, 4}), ElementsAre(12, 4));
}

TEST(BpeMerges, LeftmostFirstAmongEqualRanks) {
  BpeMerges merges;
  ASSERT_TRUE(merges.Add(1, 1, 11).ok());
  EXPECT_THAT(Apply(merges, {1, 1, 1}), ElementsAre(11, 1));
}

TEST(BpeMerges, MergedTokensMergeOn) {
  BpeMerges merges;
  ASSERT_TRUE(merges.Add(1, 1, 2).ok());
  ASSERT_TRUE(merges.Add(2, 2, 4).ok());
  ASSERT_TRUE(merges.Add(4, 4, 8).ok());
  EXPECT_THAT(Apply(merges, std::vector<TokenId>(15, 1)), ElementsAre(8, 4, 2, 1));
}

TEST(BpeMerges, ASymbolWithoutTokenSeparatesAndVanishes) {
  BpeMerges merges;
  ASSERT_TRUE(merges.Add(1, 1, 11).ok());
  EXPECT_THAT(Apply(merges, {1, BpeMerges::kNoToken, 1}), ElementsAre(1, 1));
  EXPECT_THAT(Apply(merges, {}), ElementsAre());
}

TEST(BpeMerges, AppendsToWhatIsThere) {
  BpeMerges merges;
  std::vector<TokenId> out = {9};
  merges.Apply(std::vector<TokenId>{1, 2}, out);
  EXPECT_THAT(out, ElementsAre(9, 1, 2));
}

TEST(BpeMerges, RefusesAPairTwice) {
  BpeMerges merges;
  ASSERT_TRUE(merges.Add(1, 2, 3).ok());
  EXPECT_EQ(merges.Add(1, 2, 4).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(merges.size(), 1u);
}

// The definition of BPE, scanned in full for every merge. Tokens are strings here.
std::vector<std::string> Slow(const std::vector<std::pair<std::string, std::string>>& merges,
                              std::vector<std::string> word) {
  for (;;) {
    size_t best_rank = merges.size();
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank] == std::pair(word[i], word[i + 1])) {
          best_rank = rank;
          best_at = i;
        }
      }
    }
    if (best_rank == merges.size()) return word;
    word[best_at] += word[best_at + 1];
    word.erase(word.begin() + best_at + 1);
  }
}

TEST(BpeMerges, AgreesWithTheDefinitionOnRandomMerges) {
  std::mt19937 random(3);
  const auto below = [&](size_t limit) {
    return std::uniform_int_distribution<size_t>(0, limit - 1)(random);
  };
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> pairs;
    BpeMerges merges;
    const auto id_of = [&](const std::string& text) {
      return static_cast<TokenId>(std::find(tokens.begin(), tokens.end(), text) - tokens.begin());
    };
    for (int i = 0; i < 12; ++i) {
      const std::string left = tokens[below(tokens.size())];
      const std::string right = tokens[below(tokens.size())];
      if (left.size() + right.size() > 6) continue;
      if (static_cast<size_t>(id_of(left + right)) == tokens.size()) tokens.push_back(left + right);
      if (merges.Add(id_of(left), id_of(right), id_of(left + right)).ok()) {
        pairs.emplace_back(left, right);
      }
    }
    std::vector<std::string> word;
    std::vector<TokenId> ids;
    for (size_t i = 0; i < 24; ++i) {
      word.push_back(tokens[below(3)]);
      ids.push_back(id_of(word.back()));
    }
    std::vector<TokenId> expected;
    for (const std::string& token : Slow(pairs, word)) expected.push_back(id_of(token));
    EXPECT_EQ(Apply(merges, ids), expected);
  }
}

TEST(BpeMerges, AWordOfAMillionSymbolsIsNoTrouble) {
  BpeMerges merges;
  TokenId size = 1;
  for (; size <= 512; size *= 2) ASSERT_TRUE(merges.Add(size, size, 2 * size).ok());
  EXPECT_THAT(Apply(merges, std::vector<TokenId>(1 << 20, 1)),
              ::testing::AllOf(::testing::SizeIs(1 << 10), ::testing::Each(1024)));
}

}  // namespace
}  // namespace loopserve::worker
