#include "worker/engine/turn.h"

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

TEST(FinishReason, NamesRoundTrip) {
  for (FinishReason reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kCancelled}) {
    EXPECT_EQ(FinishReasonFromName(NameOf(reason)), reason);
  }
  EXPECT_EQ(NameOf(FinishReason::kLength), "length");
}

}  // namespace
}  // namespace loopserve::worker
