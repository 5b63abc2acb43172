#include "worker/backend/cpu/work_crew.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "common/cpus.h"

namespace loopserve::worker::cpu {
namespace {

TEST(WorkCrewTest, CountsTheCaller) {
  EXPECT_EQ(WorkCrew(1).threads(), 1);
  EXPECT_EQ(WorkCrew(3).threads(), 3);
  EXPECT_GE(WorkCrew(0).threads(), 1);
}

TEST(WorkCrewTest, TakesEachItemOnceInRunsOfTheGrain) {
  for (const int threads : {1, 2, 5}) {
    WorkCrew crew(threads);
    for (const int64_t count : {0, 1, 2, 7, 100, 1001}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> taken(static_cast<size_t>(count));
        crew.For(count, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_LT(begin, end);
          EXPECT_LE(end - begin, grain);
          EXPECT_EQ(begin % grain, 0);
          EXPECT_GE(thread, 0);
          EXPECT_LT(thread, threads);
          for (int64_t i = begin; i < end; ++i) ++taken[static_cast<size_t>(i)];
        });
        for (const auto& t : taken) ASSERT_EQ(t, 1);
      }
    }
  }
}

// No thread index is used by two threads at a time: scratch buffers depend on it.
TEST(WorkCrewTest, ThreadIndicesAreExclusive) {
  WorkCrew crew(4);
  std::vector<std::atomic<bool>> busy(4);
  for (int round = 0; round < 200; ++round) {
    crew.For(64, 1, [&](int64_t, int64_t, int thread) {
      EXPECT_FALSE(busy[static_cast<size_t>(thread)].exchange(true));
      busy[static_cast<size_t>(thread)] = false;
    });
  }
}

// What a round wrote is visible to the caller and to the next round, over many short rounds.
TEST(WorkCrewTest, RoundsFollowEachOther) {
  WorkCrew crew(3);
  std::vector<int64_t> values(50, 0);
  for (int64_t round = 1; round <= 5000; ++round) {
    crew.For(50, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        if (values[static_cast<size_t>(i)] == round - 1) values[static_cast<size_t>(i)] = round;
      }
    });
  }
  for (const int64_t v : values) EXPECT_EQ(v, 5000);
}

// Every thread but the caller's runs on its own CPU and nowhere else.
TEST(WorkCrewTest, PinsItsThreads) {
  const std::vector<int> allowed = common::ReadCpus().allowed;
  constexpr int kThreads = 3;
  const std::vector<int> cpus = common::CpusOfThreads(allowed, 1, kThreads);
  WorkCrew crew(kThreads, cpus);
  std::vector<std::vector<int>> seen(kThreads);
  std::atomic<int> inside = 0;
  crew.For(kThreads, 1, [&](int64_t, int64_t, int thread) {
    // Each part waits for the others, so that no thread takes two.
    ++inside;
    while (inside < kThreads) std::this_thread::yield();
    seen[static_cast<size_t>(thread)] = common::ReadCpus().allowed;
  });
  EXPECT_EQ(seen[0], allowed);
  for (size_t i = 1; i < kThreads; ++i) EXPECT_EQ(seen[i], std::vector<int>{cpus[i]}) << i;
}

TEST(WorkCrewTest, HomesShareOutAllItemsByThreads) {
  const WorkCrew crew(5, {}, std::vector<int>{0, 0, 0, 1, 1});
  EXPECT_EQ(crew.nodes(), 2);
  for (const int64_t count : {0, 1, 4, 10, 1001}) {
    const WorkCrew::Range first = crew.HomeOf(count, 0);
    const WorkCrew::Range second = crew.HomeOf(count, 1);
    EXPECT_EQ(first.begin, 0);
    EXPECT_EQ(first.end, second.begin);
    EXPECT_EQ(second.end, count);
    EXPECT_EQ(first.size(), count * 3 / 5);
  }
  EXPECT_EQ(WorkCrew(3).nodes(), 1);
  EXPECT_EQ(WorkCrew(3).HomeOf(7, 0).size(), 7);
}

// Each item of each node once, whoever takes it; a crew of one thread takes them all.
TEST(WorkCrewTest, TakesEveryNodesItems) {
  for (const int threads : {1, 2, 5}) {
    std::vector<int> nodes;
    for (int i = 0; i < threads; ++i) nodes.push_back(i % 3);
    WorkCrew crew(threads, {}, nodes);
    constexpr int64_t kCounts[] = {7, 0, 100};
    const std::span<const int64_t> own(kCounts, static_cast<size_t>(crew.nodes()));
    std::vector<std::vector<std::atomic<int>>> taken;
    for (const int64_t count : own) taken.emplace_back(static_cast<size_t>(count));
    crew.ForHomes(own, 3, [&](int node, int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) ++taken[size_t(node)][size_t(i)];
    });
    for (const auto& node : taken) {
      for (const auto& t : node) ASSERT_EQ(t, 1);
    }
  }
}

// While both nodes have work left, each thread is at its own.
TEST(WorkCrewTest, ThreadsBeginAtHome) {
  WorkCrew crew(2, {}, std::vector<int>{0, 1});
  const int64_t counts[] = {1, 1};
  std::atomic<int> inside = 0;
  int thread_at[2] = {-1, -1};
  crew.ForHomes(counts, 1, [&](int node, int64_t, int64_t, int thread) {
    ++inside;
    while (inside < 2) std::this_thread::yield();
    thread_at[node] = thread;
  });
  EXPECT_EQ(thread_at[0], 0);
  EXPECT_EQ(thread_at[1], 1);
}

TEST(WorkCrewTest, StopsWithoutHavingWorked) {
  for (int i = 0; i < 50; ++i) WorkCrew crew(4);
}

}  // namespace
}  // namespace loopserve::worker::cpu
