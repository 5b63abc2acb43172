#include "kvstore/eviction.h"

#include <gtest/gtest.h>

namespace loopserve::kvstore {
namespace {

PlaneKey Key(uint64_t block, uint8_t plane = 0) { return {{common::Hash128{0, block}}, plane}; }

TEST(EvictionTest, LeastRecentlyUsedFirst) {
  EvictionOrder order;
  EXPECT_EQ(order.Victim(), std::nullopt);
  for (uint64_t i = 1; i <= 3; ++i) order.Use(Key(i));
  EXPECT_EQ(order.Victim(), Key(1));
  order.Use(Key(1));
  EXPECT_EQ(order.Victim(), Key(2));
  order.Remove(Key(2));
  EXPECT_EQ(order.Victim(), Key(3));
  EXPECT_EQ(order.size(), 2u);
}

TEST(EvictionTest, RefinementsLeaveBeforeTheirBase) {
  EvictionOrder order;
  for (uint8_t plane = 0; plane < 3; ++plane) order.Use(Key(1, plane));
  for (const uint8_t plane : {2, 1, 0}) {
    EXPECT_EQ(order.Victim(), Key(1, plane));
    order.Remove(Key(1, plane));
  }
}

TEST(EvictionTest, ASequenceTouchedFromItsEndShrinksFromItsEnd) {
  EvictionOrder order;
  for (uint64_t block = 1; block <= 3; ++block) order.Use(Key(block));
  for (uint64_t block = 3; block >= 1; --block) order.Use(Key(block));
  EXPECT_EQ(order.Victim(), Key(3));
}

TEST(EvictionTest, RemovingWhatIsNotThereIsFine) {
  EvictionOrder order;
  order.Remove(Key(1));
  EXPECT_EQ(order.size(), 0u);
}

}  // namespace
}  // namespace loopserve::kvstore
