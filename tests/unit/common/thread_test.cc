#include "common/thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "absl/synchronization/notification.h"

namespace loopserve::common {
namespace {

TEST(ThreadPool, RunsEverythingBeforeItStops) {
  std::atomic<int> ran = 0;
  {
    ThreadPool pool("test", 3);
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(pool.Submit([&] { ++ran; }));
  }
  EXPECT_EQ(ran, 100);
}

TEST(ThreadPool, RefusesWhenFullAndAfterStop) {
  absl::Notification started;
  absl::Notification release;
  ThreadPool pool("test", 1, 1);
  ASSERT_TRUE(pool.Submit([&] {
    started.Notify();
    release.WaitForNotification();
  }));
  started.WaitForNotification();
  EXPECT_TRUE(pool.Submit([] {}));
  EXPECT_FALSE(pool.Submit([] {}));
  release.Notify();
  pool.Stop();
  EXPECT_FALSE(pool.Submit([] {}));
}

TEST(ShareOut, CallsEachOnceAndNotLater) {
  ThreadPool pool("test", 3);
  for (const size_t count : {0, 1, 2, 100}) {
    std::vector<std::atomic<int>> calls(count);
    ShareOut(pool, count, [&](size_t i) { ++calls[i]; });
    for (const auto& c : calls) EXPECT_EQ(c, 1);
  }
}

TEST(ShareOut, BusyAndStoppedHelpersHoldNothingUp) {
  absl::Notification release;
  ThreadPool pool("test", 1);
  ASSERT_TRUE(pool.Submit([&] { release.WaitForNotification(); }));
  int calls = 0;  // by this thread only
  ShareOut(pool, 10, [&](size_t) { ++calls; });
  EXPECT_EQ(calls, 10);
  release.Notify();
  pool.Stop();
  ShareOut(pool, 10, [&](size_t) { ++calls; });
  EXPECT_EQ(calls, 20);
}

TEST(ShareOut, HelpersTakePart) {
  ThreadPool pool("test", 1);
  absl::Notification both[2];
  // Neither call returns before the other has begun.
  ShareOut(pool, 2, [&](size_t i) {
    both[i].Notify();
    both[1 - i].WaitForNotification();
  });
}

TEST(BoundedQueue, PopEndsAfterClose) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  queue.Close();
  EXPECT_FALSE(queue.TryPush(4));
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_EQ(queue.Pop(), 2);
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

TEST(BoundedQueue, PopTimesOut) {
  BoundedQueue<int> queue(1);
  EXPECT_EQ(queue.Pop(absl::ZeroDuration()), std::nullopt);
}

}  // namespace
}  // namespace loopserve::common
