#include "worker/model/sharing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace loopserve::worker {
namespace {

std::vector<int64_t> QueryHeadsPerRank(int64_t q_heads, int64_t kv_heads, int ranks) {
  std::vector<int64_t> counts;
  for (int r = 0; r < ranks; ++r)
    counts.push_back(QueryHeadsOf(q_heads, kv_heads, {r, ranks}).size());
  return counts;
}

TEST(SplitEvenlyTest, GivesTheFirstRanksOneMore) {
  EXPECT_EQ(SplitEvenly(3, {0, 2}).size(), 2);
  EXPECT_EQ(SplitEvenly(3, {1, 2}).size(), 1);
  for (int size = 1; size <= 20; ++size) {
    int64_t next = 0;
    for (int rank = 0; rank < size; ++rank) {
      const RowRange range = SplitEvenly(17, {rank, size});
      EXPECT_EQ(range.begin, next);
      next = range.end;
    }
    EXPECT_EQ(next, 17);
  }
}

TEST(HeadsTest, OfNineAndThree) {
  using Counts = std::vector<int64_t>;
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 1), Counts({9}));
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 2), Counts({6, 3}));
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 3), Counts({3, 3, 3}));
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 4), Counts({2, 1, 3, 3}));
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 5), Counts({2, 1, 2, 1, 3}));
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 6), Counts({2, 1, 2, 1, 2, 1}));
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 7), Counts({1, 1, 1, 2, 1, 2, 1}));
  EXPECT_EQ(QueryHeadsPerRank(9, 3, 9), Counts(9, 1));
  EXPECT_EQ(QueryHeadsPerRank(7, 1, 2), Counts({4, 3}));
}

// Every way to share the heads of up to 8 KV heads with groups of up to 6.
struct Case {
  int64_t kv_heads, group;
  int ranks;
  RowRange q(int rank) const { return QueryHeadsOf(kv_heads * group, kv_heads, {rank, ranks}); }
  RowRange kv(int rank) const { return KvHeadsOf(kv_heads, {rank, ranks}); }
};

template <class Check>
void ForEveryCase(Check check) {
  for (int64_t kv_heads = 1; kv_heads <= 8; ++kv_heads) {
    for (int64_t group = 1; group <= 6; ++group) {
      for (int ranks = 1; ranks <= kv_heads * group; ++ranks) {
        SCOPED_TRACE(absl::StrCat(kv_heads, " KV heads, groups of ", group, ", ranks ", ranks));
        check(Case{kv_heads, group, ranks});
      }
    }
  }
}

TEST(HeadsTest, EveryQueryHeadIsOnOneRankAndInOrder) {
  ForEveryCase([](const Case& c) {
    int64_t next = 0;
    for (int r = 0; r < c.ranks; ++r) {
      EXPECT_EQ(c.q(r).begin, next);
      EXPECT_GT(c.q(r).size(), 0);
      next = c.q(r).end;
    }
    EXPECT_EQ(next, c.kv_heads * c.group);
  });
}

// As backends see it: query head i of a rank reads the rank's KV head i / (query heads per KV
// head).
TEST(HeadsTest, QueryHeadsFindTheirKvHeadOnTheirRank) {
  ForEveryCase([](const Case& c) {
    for (int r = 0; r < c.ranks; ++r) {
      ASSERT_GT(c.kv(r).size(), 0);
      ASSERT_EQ(c.q(r).size() % c.kv(r).size(), 0);
      const int64_t group = c.q(r).size() / c.kv(r).size();
      for (int64_t i = 0; i < c.q(r).size(); ++i) {
        EXPECT_EQ(c.kv(r).begin + i / group, (c.q(r).begin + i) / c.group);
      }
    }
  });
}

TEST(HeadsTest, KvHeadsAreHeldTwiceOnlyWhereRanksOutnumberThem) {
  ForEveryCase([](const Case& c) {
    int64_t held = 0;
    for (int r = 0; r < c.ranks; ++r) held += c.kv(r).size();
    EXPECT_EQ(held, std::max<int64_t>(c.kv_heads, c.ranks));
  });
}

TEST(HeadsTest, NoRankHasMuchMoreThanAnother) {
  ForEveryCase([](const Case& c) {
    const auto counts = QueryHeadsPerRank(c.kv_heads * c.group, c.kv_heads, c.ranks);
    const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
    EXPECT_LE(*most, 2 * ((c.kv_heads * c.group + c.ranks - 1) / c.ranks));
    if (c.ranks <= c.kv_heads) {
      EXPECT_LE(*most - *least, c.group) << "one KV head with all that read it";
    } else if (c.ranks % c.kv_heads == 0) {
      EXPECT_LE(*most - *least, 1);
    }
  });
}

TEST(SharingTest, CountsValues) {
  const auto pair = [](RowRange range) { return std::pair(range.begin, range.end); };
  EXPECT_EQ(pair(Evenly(5)({1, 2})), std::pair(int64_t{3}, int64_t{5}));
  EXPECT_EQ(pair(Evenly(5, 32)({0, 2})), std::pair(int64_t{0}, int64_t{96}));
  EXPECT_EQ(pair(Evenly(2)({2, 3})), std::pair(int64_t{2}, int64_t{2})) << "nothing is left";
  EXPECT_EQ(pair(ByKvHeads(3, 16)({1, 4})), std::pair(int64_t{0}, int64_t{16}));
  EXPECT_EQ(pair(ByQueryHeads(9, 3, 16)({1, 4})), std::pair(int64_t{32}, int64_t{48}));
}

TEST(KvShardTest, CountsWhatSeveralRanksHold) {
  const kvstore::KvShape shape{.layers = 2, .kv_heads = 3, .head_dim = 4, .block_tokens = 8};
  EXPECT_EQ(ShardOf(shape, {0, 2}).kv_heads, 2);
  EXPECT_EQ(ShardOf(shape, {4, 5}).kv_heads, 1);
  EXPECT_EQ(ShardOf(shape, {0, 1}), shape);
  for (const int ranks : {1, 2, 3}) EXPECT_EQ(BlockBytesOnRanks(shape, ranks), shape.block_bytes());
  for (const int ranks : {4, 5, 9}) {
    EXPECT_EQ(BlockBytesOnRanks(shape, ranks),
              static_cast<uint64_t>(ranks) * shape.block_bytes() / 3);
  }
}

}  // namespace
}  // namespace loopserve::worker
