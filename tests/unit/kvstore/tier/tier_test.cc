#include "kvstore/tier/tier.h"

#include <gtest/gtest.h>

#include "kvstore/prefix_index.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

TEST(TierTest, PlacesHaveTheirPublicNames) {
  EXPECT_EQ(NameOf(Place::kDevice), "device");
  EXPECT_EQ(NameOf(Place::kHost), "host");
  EXPECT_EQ(NameOf(Place::kDisk), "disk");
  EXPECT_EQ(NameOf(Place::kRemote), "remote");
}

TEST(TierTest, LookupWalksWhatIsContained) {
  const auto tier = testing::MakeHostTier(1 << 20);
  const BlockKey root = RootKey({.model = "m"});
  const auto tokens = testing::RandomTokens(10, 1);
  for (const BlockKey& key : BlockKeys(root, tokens, 4)) {
    ASSERT_OK(tier->Put({key, 0}, testing::EntryOf(1)));
  }
  EXPECT_EQ(*tier->Lookup(root, tokens, 4), 10);
  EXPECT_EQ(*tier->Lookup(root, std::span(tokens).first(9), 4), 8);
  EXPECT_EQ(*tier->Lookup(RootKey({.model = "n"}), tokens, 4), 0);
}

}  // namespace
}  // namespace loopserve::kvstore
