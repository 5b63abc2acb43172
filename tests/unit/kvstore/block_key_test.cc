#include "kvstore/block_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/kv_bytes.h"

namespace loopserve::kvstore {
namespace {

using common::TokenId;

TEST(BlockKeyTest, EveryPartOfTheFingerprintMatters) {
  const Fingerprint base{.model = "m", .layout = "l", .policy = "exact", .cache_namespace = "t"};
  std::set<BlockKey> keys = {RootKey(base)};
  Fingerprint other = base;
  other.model = "n";
  EXPECT_TRUE(keys.insert(RootKey(other)).second);
  other = base;
  other.layout = "k";
  EXPECT_TRUE(keys.insert(RootKey(other)).second);
  other = base;
  other.policy = "snapkv";
  EXPECT_TRUE(keys.insert(RootKey(other)).second);
  other = base;
  other.cache_namespace = "u";
  EXPECT_TRUE(keys.insert(RootKey(other)).second);
  EXPECT_FALSE(keys.insert(RootKey(base)).second);
}

TEST(BlockKeyTest, PartsDoNotRunIntoEachOther) {
  EXPECT_NE(RootKey({.model = "ab", .layout = "c"}), RootKey({.model = "a", .layout = "bc"}));
}

TEST(BlockKeyTest, AChildDependsOnParentTokensAndLength) {
  const BlockKey a = RootKey({.model = "a"});
  const BlockKey b = RootKey({.model = "b"});
  const std::vector<TokenId> tokens = {1, 2, 3};
  const std::vector<TokenId> longer = {1, 2, 3, 0};
  const std::vector<TokenId> swapped = {1, 3, 2};
  EXPECT_EQ(ChildKey(a, tokens), ChildKey(a, tokens));
  EXPECT_NE(ChildKey(a, tokens), ChildKey(b, tokens));
  EXPECT_NE(ChildKey(a, tokens), ChildKey(a, longer));
  EXPECT_NE(ChildKey(a, tokens), ChildKey(a, swapped));
  EXPECT_NE(ChildKey({common::Hash128{1, 7}}, tokens), ChildKey({common::Hash128{2, 7}}, tokens));
}

TEST(BlockKeyTest, AChainHasTheFullBlocksOnly) {
  const BlockKey root = RootKey({.model = "a"});
  const std::vector<TokenId> tokens = testing::RandomTokens(11, 1);
  const std::vector<BlockKey> keys = ChainKeys(root, tokens, 4);
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys[0], ChildKey(root, std::span(tokens).first(4)));
  EXPECT_EQ(keys[1], ChildKey(keys[0], std::span(tokens).subspan(4, 4)));
  EXPECT_THAT(ChainKeys(root, std::span(tokens).first(3), 4), ::testing::IsEmpty());
}

// Keys are written to disk and sent to other processes: they may never change.
TEST(BlockKeyTest, KeysAreForEver) {
  const BlockKey root =
      RootKey({.model = "model", .layout = "layout", .cache_namespace = "tenant"});
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  EXPECT_EQ(root.hash.Hex(), "05a572e7162d74f94d3f5d965fb9dd2c");
  EXPECT_EQ(ChildKey(root, tokens).hash.Hex(), "57c6bb3d6472871268ac474072f820ba");
}

}  // namespace
}  // namespace loopserve::kvstore
