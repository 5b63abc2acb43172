#include "clients/cli/bench_load.h"

#include <gtest/gtest.h>

#include "tests/unit/clients/cli/fake_router.h"

namespace loopserve::clients {
namespace {

LoadOptions Small() {
  LoadOptions options;
  options.users = 3;
  options.turns = 2;
  options.think_time_s = 0;
  options.prompt_tokens = 20;
  options.new_tokens = 5;
  return options;
}

TEST(BenchLoadTest, EachUserHoldsOneSession) {
  FakeRouter router;
  Client client(Target{router.address(), router.address()});
  const std::atomic<bool> stop = false;
  size_t seen = 0;
  const LoadResult result = RunLoad(
      Small(), client, stop, [&](const std::vector<LoadTurn>& turns) { seen = turns.size(); });
  EXPECT_EQ(result.turns.size(), 6u);
  EXPECT_EQ(seen, 6u);
  for (const LoadTurn& turn : result.turns) {
    EXPECT_TRUE(turn.status.ok()) << turn.status;
    EXPECT_EQ(turn.outcome.started.turn(), static_cast<uint64_t>(turn.turn));
    EXPECT_EQ(turn.worker_before, turn.turn == 0 ? "" : "w1");
  }
  for (int i = 1; i <= 3; ++i) EXPECT_FALSE(router.HasSession(absl::StrCat("made-", i)));
}

TEST(BenchLoadTest, ALostTurnEndsItsUser) {
  FakeRouter router;
  router.FailNextTurns({common::MakeError(common::Reason::kInternal, "bug")});
  Client client(Target{router.address(), router.address()});
  const std::atomic<bool> stop = false;
  LoadOptions options = Small();
  options.users = 1;
  const LoadResult result = RunLoad(options, client, stop, [](const auto&) {});
  ASSERT_EQ(result.turns.size(), 1u);
  EXPECT_FALSE(result.turns[0].status.ok());
}

TEST(BenchLoadTest, StopsWhenTold) {
  FakeRouter router;
  Client client(Target{router.address(), router.address()});
  const std::atomic<bool> stop = true;
  EXPECT_TRUE(RunLoad(Small(), client, stop, [](const auto&) {}).turns.empty());
}

TEST(BenchLoadTest, TheSameSeedGivesTheSameText) {
  EXPECT_EQ(BenchText(50, 7), BenchText(50, 7));
  EXPECT_NE(BenchText(50, 7), BenchText(50, 8));
  const std::string text = BenchText(50, 7);
  EXPECT_EQ(std::count(text.begin(), text.end(), ' '), 49);
}

}  // namespace
}  // namespace loopserve::clients
