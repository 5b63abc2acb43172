#include "kvstore/block_pool.h"

#include <cstring>
#include <thread>

#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using testing::StatusIs;

constexpr KvShape kShape{.layers = 2, .kv_heads = 3, .head_dim = 4, .block_tokens = 8};
constexpr KvShape kInt8Shape{
    .layers = 2, .kv_heads = 3, .head_dim = 5, .block_tokens = 7, .dtype = KvDtype::kInt8};

std::vector<std::byte> Pattern(int seed, const KvShape& shape = kShape) {
  std::vector<std::byte> bytes(shape.block_bytes());
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + seed);
  return bytes;
}

class BlockPoolTest : public ::testing::Test {
 protected:
  const std::unique_ptr<Memory> memory_ = CreateHostMemory();
  std::unique_ptr<KvBlockPool> Pool(uint32_t blocks, std::vector<int32_t> heads,
                                    const KvShape& shape = kShape) {
    std::vector<KvBlockPool::Shard> shards;
    int32_t first = 0;
    for (const int32_t n : heads) {
      shards.push_back({memory_.get(), first, n});
      first += n;
    }
    auto pool = KvBlockPool::Create(shape, blocks, shards);
    EXPECT_OK(pool);
    return *std::move(pool);
  }
};

TEST_F(BlockPoolTest, HandlesShareAndFree) {
  const auto pool = Pool(2, {3});
  std::optional<BlockHandle> a = pool->Allocate();
  std::optional<BlockHandle> b = pool->Allocate();
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->id(), b->id());
  EXPECT_FALSE(pool->Allocate());
  {
    const BlockHandle copy = *a;
    EXPECT_EQ(pool->use_count(a->id()), 2u);
    a.reset();
    EXPECT_EQ(pool->free_blocks(), 0u);
  }
  EXPECT_EQ(pool->free_blocks(), 1u);
  BlockHandle moved = *std::move(b);
  EXPECT_EQ(pool->use_count(moved.id()), 1u);
  moved = BlockHandle();
  EXPECT_EQ(pool->free_blocks(), 2u);
}

TEST_F(BlockPoolTest, WhatWasLostIsNotCopiedUntilItIsAllocatedAnew) {
  const auto pool = Pool(3, {3});
  std::optional<BlockHandle> lost = pool->Allocate();
  std::vector<std::byte> bytes = Pattern(1);
  ASSERT_OK(pool->WriteBlock(lost->id(), bytes));
  EXPECT_TRUE(pool->intact(lost->id()));
  pool->VoidBlocks();
  const BlockHandle fresh = *pool->Allocate();
  EXPECT_FALSE(pool->intact(lost->id()));
  EXPECT_TRUE(pool->intact(fresh.id()));
  EXPECT_THAT(pool->ReadBlock(lost->id(), bytes), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(pool->WriteBlock(lost->id(), bytes), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(pool->CopyBlock(lost->id(), fresh.id()), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(pool->CopyBlock(fresh.id(), lost->id()), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(pool->WriteBlock(fresh.id(), bytes));
  const common::BlockId id = lost->id();
  lost.reset();
  lost = pool->Allocate();
  ASSERT_EQ(lost->id(), id);
  EXPECT_TRUE(pool->intact(id));
  EXPECT_OK(pool->ReadBlock(id, bytes));
}

class ShardedBlockPoolTest : public BlockPoolTest, public ::testing::WithParamInterface<KvShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, ShardedBlockPoolTest, ::testing::Values(kShape, kInt8Shape),
                         [](const auto& info) { return DtypeName(info.param.dtype); });

TEST_P(ShardedBlockPoolTest, LogicalBytesDoNotDependOnTheSharding) {
  const KvShape& shape = GetParam();
  const std::vector<std::byte> bytes = Pattern(3, shape);
  for (const auto& heads : std::vector<std::vector<int32_t>>{{3}, {2, 1}, {1, 1, 1}}) {
    const auto pool = Pool(3, heads, shape);
    const BlockHandle first = *pool->Allocate();
    const BlockHandle second = *pool->Allocate();
    ASSERT_OK(pool->WriteBlock(first.id(), Pattern(1, shape)));
    ASSERT_OK(pool->WriteBlock(second.id(), bytes));
    std::vector<std::byte> back(bytes.size());
    ASSERT_OK(pool->ReadBlock(second.id(), back));
    EXPECT_EQ(back, bytes);
    ASSERT_OK(pool->CopyBlock(second.id(), first.id()));
    ASSERT_OK(pool->ReadBlock(first.id(), back));
    EXPECT_EQ(back, bytes);
    // Each rank's arena has its own heads where its own shape says.
    for (int rank = 0; rank < pool->ranks(); ++rank) {
      const KvArena& arena = pool->arena(rank);
      for (int32_t h = 0; h < arena.shape.kv_heads; ++h) {
        EXPECT_EQ(
            std::memcmp(arena.block(second.id()) + arena.shape.offset(1, KvSide::kValue, h),
                        bytes.data() + shape.offset(1, KvSide::kValue, arena.first_kv_head + h),
                        shape.head_bytes()),
            0);
      }
    }
  }
}

// Which heads each rank holds: first and count.
struct Held {
  int32_t first, count;
};
using Sharding = std::vector<Held>;

TEST_P(ShardedBlockPoolTest, HeadsOfSeveralRanksAreWrittenToAllAndReadFromTheFirst) {
  const KvShape& shape = GetParam();
  for (const Sharding& sharding :
       {Sharding{{0, 1}, {0, 1}, {1, 1}, {2, 1}, {2, 1}}, Sharding{{0, 3}, {0, 3}},
        Sharding{{0, 2}, {1, 2}}, Sharding{{0, 2}, {0, 1}, {1, 2}, {0, 3}}}) {
    std::vector<KvBlockPool::Shard> shards;
    size_t heads = 0;
    for (const Held& held : sharding) {
      shards.push_back({memory_.get(), held.first, held.count});
      heads += static_cast<size_t>(held.count);
    }
    ASSERT_OK_AND_ASSIGN(const auto pool, KvBlockPool::Create(shape, 2, shards));
    EXPECT_EQ(pool->resident_block_bytes(), shape.block_bytes() / 3 * heads);
    const BlockHandle block = *pool->Allocate();
    const BlockHandle copy = *pool->Allocate();
    const std::vector<std::byte> bytes = Pattern(5, shape);
    ASSERT_OK(pool->WriteBlock(block.id(), bytes));
    ASSERT_OK(pool->CopyBlock(block.id(), copy.id()));
    std::vector<bool> seen(3, false);
    for (int rank = 0; rank < pool->ranks(); ++rank) {
      const KvArena& arena = pool->arena(rank);
      for (int32_t h = 0; h < arena.shape.kv_heads; ++h) {
        const int32_t head = arena.first_kv_head + h;
        for (int32_t layer = 0; layer < shape.layers; ++layer) {
          for (const KvSide side : {KvSide::kKey, KvSide::kValue}) {
            std::byte* const there = arena.block(copy.id()) + arena.shape.offset(layer, side, h);
            EXPECT_EQ(std::memcmp(there, bytes.data() + shape.offset(layer, side, head),
                                  shape.head_bytes()),
                      0);
            if (seen[static_cast<size_t>(head)]) std::memset(there, 0xee, shape.head_bytes());
          }
        }
        seen[static_cast<size_t>(head)] = true;
      }
    }
    std::vector<std::byte> back(bytes.size());
    ASSERT_OK(pool->ReadBlock(copy.id(), back));
    EXPECT_EQ(back, bytes) << "read from a later rank";
  }
}

TEST_F(BlockPoolTest, WhatDoesNotFitIsRefused) {
  const auto pool = Pool(1, {3});
  std::vector<std::byte> short_buffer(10);
  EXPECT_THAT(pool->ReadBlock(common::BlockId(0), short_buffer),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(pool->WriteBlock(common::BlockId(1), Pattern(0)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  for (const Sharding& sharding :
       {Sharding{}, Sharding{{0, 2}}, Sharding{{1, 2}}, Sharding{{0, 4}}, Sharding{{0, 1}, {2, 1}},
        Sharding{{1, 2}, {0, 3}}, Sharding{{-1, 4}}, Sharding{{0, 3}, {0, 0}}}) {
    std::vector<KvBlockPool::Shard> shards;
    for (const Held& held : sharding) shards.push_back({memory_.get(), held.first, held.count});
    EXPECT_THAT(KvBlockPool::Create(kShape, 1, shards),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(KvBlockPool::Create(kShape, 0, {{memory_.get(), 0, 3}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(BlockPoolTest, ThreadsAllocateEachBlockOnce) {
  const auto pool = Pool(64, {3});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool] {
      for (int i = 0; i < 2000; ++i) {
        const std::optional<BlockHandle> block = pool->Allocate();
        ASSERT_TRUE(block);
        ASSERT_EQ(pool->use_count(block->id()), 1u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool->free_blocks(), 64u);
}

}  // namespace
}  // namespace loopserve::kvstore
