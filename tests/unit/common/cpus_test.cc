#include "common/cpus.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <set>
#include <thread>

#include "tests/support/status_matchers.h"

namespace loopserve::common {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::ElementsAre;

TEST(CpusTest, ReadsTheAffinityMask) {
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  const Cpus cpus = ReadCpus();
  EXPECT_EQ(static_cast<int>(cpus.allowed.size()), CPU_COUNT(&set));
  for (const int cpu : cpus.allowed) EXPECT_TRUE(CPU_ISSET(cpu, &set)) << cpu;
  EXPECT_GE(cpus.online, 1);
  EXPECT_GE(cpus.numa_nodes, 1);
}

TEST(CpusTest, PinsTheCallingThreadOnly) {
  const Cpus before = ReadCpus();
  std::thread([&] {
    EXPECT_OK(PinThisThread(before.allowed.back()));
    EXPECT_EQ(sched_getcpu(), before.allowed.back());
    EXPECT_THAT(ReadCpus().allowed, ElementsAre(before.allowed.back()));
  }).join();
  EXPECT_EQ(ReadCpus().allowed, before.allowed);
}

TEST(CpusTest, RefusesCpusThatAreNotThere) {
  for (const int cpu : {-1, 60000, 1 << 20}) {
    EXPECT_THAT(PinThisThread(cpu), StatusIs(absl::StatusCode::kFailedPrecondition)) << cpu;
  }
}

TEST(CpusTest, AutoPinsThreadsThatFillCpusOfTheirOwn) {
  const Cpus part{.allowed = {4, 5, 6, 7}, .online = 64, .numa_nodes = 2};
  const Cpus whole{.allowed = {0, 1, 2, 3}, .online = 4, .numa_nodes = 1};
  const Cpus nodes{.allowed = {0, 1, 2, 3}, .online = 4, .numa_nodes = 2};
  EXPECT_TRUE(ShouldPin(PinThreads::kAuto, part, 4));
  EXPECT_TRUE(ShouldPin(PinThreads::kAuto, part, 5));
  EXPECT_FALSE(ShouldPin(PinThreads::kAuto, part, 3)) << "the rest may be another worker's";
  EXPECT_FALSE(ShouldPin(PinThreads::kAuto, whole, 4));
  EXPECT_TRUE(ShouldPin(PinThreads::kAuto, nodes, 4));
  EXPECT_FALSE(ShouldPin(PinThreads::kAuto, nodes, 2));
  EXPECT_TRUE(ShouldPin(PinThreads::kOn, whole, 1));
  EXPECT_FALSE(ShouldPin(PinThreads::kOff, part, 4));
}

TEST(CpusTest, NumbersNumaNodesAsTheyComeUp) {
  const Cpus cpus = ReadCpus();
  const std::vector<int> nodes = NumaNodesOf(cpus.allowed);
  ASSERT_EQ(nodes.size(), cpus.allowed.size());
  EXPECT_EQ(nodes.front(), 0);
  EXPECT_LT(*std::max_element(nodes.begin(), nodes.end()), cpus.numa_nodes);
  EXPECT_THAT(NumaNodesOf(std::vector<int>{1 << 20, 1 << 21}), ElementsAre(0, 0)) << "no such CPUs";
  EXPECT_THAT(NumaNodesOf({}), ElementsAre());
}

TEST(CpusTest, NoCpuTwiceUntilAllHaveOne) {
  const std::vector<int> allowed = {3, 5, 8};
  EXPECT_THAT(CpusOfThreads(allowed, 0, 2), ElementsAre(3, 5));
  EXPECT_THAT(CpusOfThreads(allowed, 2, 1), ElementsAre(8));
  EXPECT_THAT(CpusOfThreads(allowed, 3, 3), ElementsAre(3, 5, 8));
  EXPECT_TRUE(CpusOfThreads(allowed, 1, 0).empty());
}

TEST(CpusTest, ParsesItsThreeWords) {
  EXPECT_EQ(*ParsePinThreads("auto"), PinThreads::kAuto);
  EXPECT_EQ(*ParsePinThreads("on"), PinThreads::kOn);
  EXPECT_EQ(*ParsePinThreads("off"), PinThreads::kOff);
  EXPECT_THAT(ParsePinThreads("yes"), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::common
