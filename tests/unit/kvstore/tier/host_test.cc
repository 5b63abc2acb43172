#include <gtest/gtest.h>

#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using testing::EntryOf;
using testing::KeyOf;

TEST(HostTierTest, TheLeastRecentlyUsedLeaveAndAreHeardOf) {
  const auto tier = testing::MakeHostTier(3000);
  std::vector<Eviction> left;
  tier->SetEvictionListener([&](const Eviction& e) { left.push_back(e); });
  for (uint64_t i = 1; i <= 3; ++i) ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
  ASSERT_OK(tier->Get(KeyOf(1)));
  ASSERT_OK(tier->Put(KeyOf(4), EntryOf(4, 1500)));
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].key, KeyOf(2));
  EXPECT_EQ(left[1].key, KeyOf(3));
  EXPECT_EQ(left[1].size, 1000u);
  EXPECT_EQ(*left[1].bytes, *EntryOf(3));
  EXPECT_TRUE(tier->Contains(KeyOf(1)));
  EXPECT_EQ(tier->usage().used_bytes, 2500u);
}

TEST(HostTierTest, TouchDecidesWhoStays) {
  const auto tier = testing::MakeHostTier(3000);
  for (uint64_t i = 1; i <= 3; ++i) ASSERT_OK(tier->Put(KeyOf(i), EntryOf(i)));
  const PlaneKey keys[] = {KeyOf(3), KeyOf(2), KeyOf(1)};
  tier->Touch(keys);
  ASSERT_OK(tier->Put(KeyOf(4), EntryOf(4)));
  EXPECT_FALSE(tier->Contains(KeyOf(3)));
  EXPECT_TRUE(tier->Contains(KeyOf(1)));
}

TEST(HostTierTest, ReadersShareTheBytes) {
  const auto tier = testing::MakeHostTier(3000);
  const SharedBytes bytes = EntryOf(1);
  ASSERT_OK(tier->Put(KeyOf(1), bytes));
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier->Get(KeyOf(1)));
  EXPECT_EQ(entry.bytes.get(), bytes.get());
  EXPECT_EQ(entry.place, Place::kHost);
}

TEST(HostTierTest, NoBytesNoTier) { EXPECT_EQ(testing::MakeHostTier(0), nullptr); }

}  // namespace
}  // namespace loopserve::kvstore
