#include "worker/backend/cpu/work_crew.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
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

TEST(WorkCrewTest, StopsWithoutHavingWorked) {
  for (int i = 0; i < 50; ++i) WorkCrew crew(4);
}

}  // namespace
}  // namespace loopserve::worker::cpu
