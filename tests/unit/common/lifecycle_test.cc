#include "common/lifecycle.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>
#include <vector>

namespace loopserve::common {
namespace {

TEST(StopStack, RunsLastFirstAndOnce) {
  std::vector<int> order;
  {
    StopStack stack;
    for (int i = 0; i < 3; ++i) stack.Push([&order, i] { order.push_back(i); });
    stack.StopAll();
  }
  EXPECT_EQ(order, (std::vector<int>{2, 1, 0}));
}

TEST(Gate, RefusesOnceClosedAndWaitsForThoseInside) {
  Gate gate;
  ASSERT_TRUE(gate.Enter());
  EXPECT_EQ(gate.inside(), 1);
  EXPECT_FALSE(gate.Close(absl::ZeroDuration()));
  EXPECT_FALSE(gate.Enter());
  std::thread leaver([&] { gate.Leave(); });
  EXPECT_TRUE(gate.Close(absl::InfiniteDuration()));
  leaver.join();
}

TEST(StopSignal, FirstSignalReturnsSecondEndsTheProcess) {
  EXPECT_EXIT(
      {
        BlockStopSignals();
        if (StopRequested()) _exit(2);
        kill(getpid(), SIGTERM);
        if (!StopRequested()) _exit(3);
        if (WaitForStopSignal() != SIGTERM) _exit(1);
        kill(getpid(), SIGINT);
        for (;;) pause();
      },
      ::testing::ExitedWithCode(128 + SIGINT), "");
}

}  // namespace
}  // namespace loopserve::common
