#include "kvstore/host_arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/deferred_memory.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

constexpr size_t kPage = HostArena::kAlign;

std::shared_ptr<HostArena> Arena(size_t pages) {
  testing::DeferredMemory memory;
  return *HostArena::Create(memory, pages * kPage);
}

TEST(HostArenaTest, PiecesAreApartAndComeBack) {
  const auto arena = Arena(8);
  {
    const HostBuffer a = HostBuffer::Take(arena, 3 * kPage);
    const HostBuffer b = HostBuffer::Take(arena, 1);
    EXPECT_TRUE(a.in_arena() && b.in_arena());
    EXPECT_EQ(a.size(), 3 * kPage);
    EXPECT_TRUE(a.data() + a.size() <= b.data() || b.data() + b.size() <= a.data());
    EXPECT_EQ(arena->free_bytes(), 4 * kPage);
  }
  EXPECT_EQ(arena->free_bytes(), 8 * kPage);
  EXPECT_TRUE(HostBuffer::Take(arena, 8 * kPage).in_arena()) << "free neighbours are one again";
}

TEST(HostArenaTest, WithoutAPieceThatIsLongEnoughPlainMemoryServes) {
  const auto arena = Arena(4);
  HostBuffer first = HostBuffer::Take(arena, 2 * kPage);
  const HostBuffer second = HostBuffer::Take(arena, 2 * kPage);
  HostBuffer plain = HostBuffer::Take(arena, kPage);
  EXPECT_FALSE(plain.in_arena());
  std::memset(plain.data(), 1, plain.size());
  first = HostBuffer();
  EXPECT_EQ(arena->free_bytes(), 2 * kPage);
  EXPECT_FALSE(HostBuffer::Take(arena, 3 * kPage).in_arena());
  EXPECT_FALSE(HostBuffer::Take(nullptr, 10).in_arena());
}

TEST(HostArenaTest, MovesKeepThePiece) {
  const auto arena = Arena(4);
  HostBuffer a = HostBuffer::Take(arena, 10);
  std::byte* const data = a.data();
  HostBuffer b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(arena->free_bytes(), 3 * kPage);
}

TEST(HostArenaTest, TakesLessWhereTheHostHasLess) {
  testing::DeferredMemory memory;
  memory.LimitHostMemory(5 * kPage);
  EXPECT_EQ((*HostArena::Create(memory, 16 * kPage))->size(), 4 * kPage);
  memory.LimitHostMemory(0);
  EXPECT_THAT(HostArena::Create(memory, 16 * kPage),
              testing::StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(HostArenaTest, ThreadsNeverShareBytes) {
  const auto arena = Arena(64);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&arena, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < 300; ++i) {
        const HostBuffer buffer = HostBuffer::Take(arena, 1 + random() % (10 * kPage));
        buffer.data()[0] = buffer.data()[buffer.size() - 1] = static_cast<std::byte>(t);
        std::this_thread::yield();
        ASSERT_EQ(buffer.data()[0], static_cast<std::byte>(t));
        ASSERT_EQ(buffer.data()[buffer.size() - 1], static_cast<std::byte>(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arena->free_bytes(), 64 * kPage);
}

}  // namespace
}  // namespace loopserve::kvstore
