#include "worker/engine/turn_ledger.h"

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
  ledger.Admitted();
  EXPECT_OK(ledger.Enter());
  EXPECT_EQ(ledger.size(), 3);
  EXPECT_EQ(ledger.waiting(), 2);
  ledger.Leave(a, false);
  EXPECT_THAT(ledger.Enter(), ReasonIs(Reason::kQueueFull));
  ledger.Leave(b, true);
  EXPECT_OK(ledger.Enter());
}

TEST(TurnLedger, ClosedRefusesAndEmpties) {
  TurnLedger ledger(2);
  const TurnTicket a = *ledger.Enter();
  ledger.Close();
  const auto refused = ledger.Enter();
  EXPECT_THAT(refused, ReasonIs(Reason::kDraining));
  EXPECT_TRUE(common::InfoOf(refused.status()).retry_after);
  EXPECT_FALSE(ledger.AwaitEmpty(absl::ZeroDuration()));
  ledger.Leave(a, true);
  EXPECT_TRUE(ledger.AwaitEmpty(absl::ZeroDuration()));
}

}  // namespace
}  // namespace loopserve::worker
