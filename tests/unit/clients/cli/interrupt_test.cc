#include "clients/cli/interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <vector>

#include "absl/synchronization/mutex.h"

namespace loopserve::clients {
namespace {

TEST(InterruptTest, SignalsArriveAsCallsInOrder) {
  InterruptWatcher::Block();
  absl::Mutex mutex;
  std::vector<std::pair<int, int>> calls;
  const auto await = [&](size_t count) {
    const auto arrived = [&] { return calls.size() == count; };
    absl::MutexLock lock(&mutex);
    EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&arrived), absl::Seconds(10)));
  };
  InterruptWatcher watcher([&](int signal, int earlier) {
    absl::MutexLock lock(&mutex);
    calls.emplace_back(signal, earlier);
  });
  kill(getpid(), SIGINT);
  await(1);
  kill(getpid(), SIGTERM);
  await(2);
  absl::MutexLock lock(&mutex);
  EXPECT_EQ(calls, (std::vector<std::pair<int, int>>{{SIGINT, 0}, {SIGTERM, 1}}));
}

}  // namespace
}  // namespace loopserve::clients
