#include "worker/session/scrape_link.h"

#include <memory>

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

TEST(ScrapeLink, RefreshesUntilItGoes) {
  auto metrics = common::Metrics::Create("test");
  int calls = 0;
  auto link = std::make_unique<ScrapeLink>(*metrics, [&] { ++calls; });
  metrics->Render();
  metrics->Render();
  EXPECT_EQ(calls, 2);
  link.reset();
  metrics->Render();
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace loopserve::worker
