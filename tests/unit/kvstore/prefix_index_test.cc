#include "kvstore/prefix_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/kv_bytes.h"

namespace loopserve::kvstore {
namespace {

using common::TokenId;

constexpr int kBlock = 4;

class PrefixIndexTest : public ::testing::Test {
 protected:
  void Store(std::span<const TokenId> tokens) {
    for (const BlockKey& key : BlockKeys(root_, tokens, kBlock)) stored_.insert(key);
  }
  PrefixMatch Find(std::span<const TokenId> tokens) {
    return LongestPrefix(root_, tokens, kBlock,
                         [this](const BlockKey& key) { return stored_.contains(key); });
  }
  const BlockKey root_ = RootKey({.model = "m"});
  std::set<BlockKey> stored_;
};

TEST_F(PrefixIndexTest, NothingStoredNothingFound) {
  EXPECT_EQ(Find(testing::RandomTokens(20, 1)).tokens(), 0);
  EXPECT_EQ(Find({}).tokens(), 0);
}

TEST_F(PrefixIndexTest, FindsEveryStoredLengthInALongerSequence) {
  const auto tokens = testing::RandomTokens(30, 1);
  for (size_t length = 1; length <= 20; ++length) {
    stored_.clear();
    Store(std::span(tokens).first(length));
    EXPECT_EQ(Find(tokens).tokens(), static_cast<int64_t>(length)) << length;
    EXPECT_EQ(Find(std::span(tokens).first(length)).tokens(), static_cast<int64_t>(length));
  }
}

TEST_F(PrefixIndexTest, ATailIsOnlyUsedWhenAllOfItMatches) {
  auto tokens = testing::RandomTokens(7, 1);
  Store(tokens);
  EXPECT_EQ(Find(std::span(tokens).first(6)).tokens(), 4);
  tokens[6] ^= 1;
  EXPECT_EQ(Find(tokens).tokens(), 4);
  tokens[1] ^= 1;
  EXPECT_EQ(Find(tokens).tokens(), 0);
}

TEST_F(PrefixIndexTest, TheLongestOfSeveralTailsWins) {
  const auto tokens = testing::RandomTokens(12, 1);
  for (const size_t length : {5, 7, 6}) Store(std::span(tokens).first(length));
  const PrefixMatch match = Find(tokens);
  EXPECT_EQ(match.tokens(), 7);
  EXPECT_EQ(match.tail_tokens, 3);
  EXPECT_EQ(match.tail, BlockKeys(root_, std::span(tokens).first(7), kBlock).back());
}

TEST_F(PrefixIndexTest, AHoleEndsThePrefix) {
  const auto tokens = testing::RandomTokens(16, 1);
  Store(tokens);
  stored_.erase(ChainKeys(root_, tokens, kBlock)[1]);
  EXPECT_EQ(Find(tokens).tokens(), 4);
}

TEST_F(PrefixIndexTest, AllPrefixKeysCoverWhateverAnyTurnStored) {
  const auto tokens = testing::RandomTokens(11, 1);
  for (size_t length = 1; length <= tokens.size(); ++length) Store(std::span(tokens).first(length));
  const auto keys = AllPrefixKeys(root_, tokens, kBlock);
  EXPECT_EQ(std::set<BlockKey>(keys.begin(), keys.end()), stored_);
}

}  // namespace
}  // namespace loopserve::kvstore
