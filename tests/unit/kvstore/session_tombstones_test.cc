#include "kvstore/session_tombstones.h"

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using common::Epoch;
using common::SessionId;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

TEST(Tombstones, TheHigherEpochCounts) {
  Tombstones stones;
  stones.Add({SessionId("a"), Epoch(3), kStart}, kStart);
  stones.Add({SessionId("a"), Epoch(2), kStart + absl::Seconds(1)}, kStart);
  EXPECT_EQ(stones.Find(SessionId("a")), Epoch(3));
  stones.Add({SessionId("a"), Epoch(5), kStart + absl::Seconds(2)}, kStart);
  EXPECT_EQ(stones.Find(SessionId("a")), Epoch(5));
  EXPECT_EQ(stones.All().size(), 1u);
  stones.Remove(SessionId("a"));
  EXPECT_FALSE(stones.Find(SessionId("a")));
}

TEST(Tombstones, AreBoundedByAgeAndNumber) {
  Tombstones stones(3);
  for (int i = 0; i < 10; ++i) {
    stones.Add({SessionId(absl::StrCat(i)), Epoch(1), kStart + absl::Seconds(i)}, kStart);
  }
  EXPECT_EQ(stones.size(), 3u);
  EXPECT_FALSE(stones.Find(SessionId("6")));
  EXPECT_TRUE(stones.Find(SessionId("7")));
  const absl::Time late = kStart + Tombstones::kKept + absl::Seconds(9);
  stones.Add({SessionId("new"), Epoch(1), late}, late);
  EXPECT_FALSE(stones.Find(SessionId("8")));
  EXPECT_TRUE(stones.Find(SessionId("9")));
  EXPECT_EQ(stones.size(), 2u);
}

TEST(Tombstones, RoundTripUpToTheFirstDamage) {
  std::vector<std::byte> bytes;
  std::vector<uint64_t> ends;
  for (int i = 0; i < 3; ++i) {
    const auto one = EncodeTombstone({SessionId(absl::StrCat("s-", i)), Epoch(7), kStart});
    bytes.insert(bytes.end(), one.begin(), one.end());
    ends.push_back(bytes.size());
  }
  uint64_t sound = 0;
  const std::vector<Tombstone> all = DecodeTombstones(bytes, sound);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(sound, bytes.size());
  EXPECT_EQ(all[2].id, SessionId("s-2"));
  EXPECT_EQ(all[2].epoch, Epoch(7));
  EXPECT_EQ(all[2].erased, kStart);
  for (size_t n = ends[1]; n < ends[2]; ++n) {
    EXPECT_EQ(DecodeTombstones(std::span(bytes).first(n), sound).size(), 2u) << n;
    EXPECT_EQ(sound, ends[1]);
    std::vector<std::byte> flipped = bytes;
    flipped[n] ^= std::byte{0x10};
    EXPECT_EQ(DecodeTombstones(flipped, sound).size(), 2u) << n;
  }
}

}  // namespace
}  // namespace loopserve::kvstore
