#include "worker/engine/turn_ledger.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using common::Reason;
using ::loopserve::testing::ReasonIs;

TEST(TurnLedger, TicketsAscend) {
  TurnLedger ledger(10);
  const TurnTicket a = *ledger.Enter();
  const TurnTicket b = *ledger.Enter();
  EXPECT_LT(a, b);
  EXPECT_TRUE(ledger.Contains(a));
  EXPECT_FALSE(ledger.Contains(TurnTicket(99)));
}

TEST(TurnLedger, OnlyWaitingTurnsFillTheQueue) {
  TurnLedger ledger(2);
  const TurnTicket a = *ledger.Enter();
  const TurnTicket b = *ledger.Enter();
  const auto full = ledger.Enter();
  EXPECT_THAT(full, ReasonIs(Reason::kQueueFull));
  EXPECT_TRUE(common::InfoOf(full.status()).retry_after);
  ledger.Admitted(a);
  ledger.Admitted(a);
  EXPECT_OK(ledger.Enter());
  EXPECT_EQ(ledger.size(), 3);
  EXPECT_EQ(ledger.waiting(), 2);
  ledger.Leave(a);
  EXPECT_THAT(ledger.Enter(), ReasonIs(Reason::kQueueFull));
  ledger.Leave(b);
  ledger.Leave(b);
  EXPECT_OK(ledger.Enter());
}

TEST(TurnLedger, AFloodDoesNotShutTheDoorForOthers) {
  TurnLedger ledger(2);
  std::vector<TurnTicket> flood = {*ledger.Enter("flood"), *ledger.Enter("flood")};
  EXPECT_THAT(ledger.Enter("flood"), ReasonIs(Reason::kQueueFull));
  const auto quiet = ledger.Enter("quiet");
  ASSERT_OK(quiet);
  EXPECT_THAT(ledger.Enter("quiet"), ReasonIs(Reason::kQueueFull));
  ledger.Admitted(*quiet);
  EXPECT_OK(ledger.Enter("quiet"));
  EXPECT_OK(ledger.Enter("third"));
  EXPECT_THAT(ledger.Enter("fourth"), ReasonIs(Reason::kQueueFull)) << "twice as long";
  EXPECT_EQ(ledger.waiting(), 4);
}

TEST(TurnLedger, ClosedRefusesAndEmpties) {
  TurnLedger ledger(2);
  const TurnTicket a = *ledger.Enter();
  ledger.Close();
  const auto refused = ledger.Enter();
  EXPECT_THAT(refused, ReasonIs(Reason::kDraining));
  EXPECT_TRUE(common::InfoOf(refused.status()).retry_after);
  EXPECT_FALSE(ledger.AwaitEmpty(absl::ZeroDuration()));
  ledger.Leave(a);
  EXPECT_TRUE(ledger.AwaitEmpty(absl::ZeroDuration()));
}

}  // namespace
}  // namespace loopserve::worker
