// What is special about the embedded directory; its promises are those of
// tests/conformance/directory_test.cc.
#include <gtest/gtest.h>

#include "router/directory/session_directory.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Epoch;
using common::SessionId;
using common::WorkerId;

TEST(EmbeddedDirectoryTest, KeepsNothingBeyondItsLife) {
  const SessionId session("s");
  ASSERT_OK_AND_ASSIGN(auto first, CreateDirectory("embedded"));
  ASSERT_OK(first->CompareAndSwap(session, std::nullopt, Pin{WorkerId("w"), Epoch(1)}));
  ASSERT_OK_AND_ASSIGN(auto second, CreateDirectory("embedded"));
  EXPECT_EQ(*second->Find(session), std::nullopt);
}

TEST(EmbeddedDirectoryTest, CountsPerWorkerThroughEveryChange) {
  ASSERT_OK_AND_ASSIGN(auto directory, CreateDirectory("embedded"));
  std::vector<SessionSighting> seen;
  for (int i = 0; i < 100; ++i) {
    seen.push_back({SessionId("s" + std::to_string(i)), Epoch(1), i % 2 == 0});
  }
  directory->Learn(WorkerId("a"), seen);
  for (SessionSighting& s : seen) s.owned = !s.owned;
  directory->Learn(WorkerId("b"), seen);  // equal epochs: those that `a` merely knew of
  EXPECT_EQ(directory->counts().by_worker.at(WorkerId("b")), 50u);
  for (SessionSighting& s : seen) s.epoch = Epoch(2);
  directory->Learn(WorkerId("b"), {seen.data(), 10});
  const DirectoryCounts counts = directory->counts();
  EXPECT_EQ(counts.sessions, 100u);
  EXPECT_EQ(counts.by_worker.at(WorkerId("a")), 45u);
  EXPECT_EQ(counts.by_worker.at(WorkerId("b")), 55u);
}

}  // namespace
}  // namespace loopserve::router
