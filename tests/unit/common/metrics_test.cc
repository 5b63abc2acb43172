#include "common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace loopserve::common {
namespace {

using ::testing::HasSubstr;

TEST(Metrics, SeriesStartAtZeroAndAreShared) {
  auto metrics = Metrics::Create("test");
  Counter& a = metrics->counter("loopserve_x_total", "X.", {{"kind", "a"}});
  metrics->counter("loopserve_x_total", "X.", {{"kind", "b"}});
  EXPECT_EQ(&a, &metrics->counter("loopserve_x_total", "X.", {{"kind", "a"}}));
  a.Increment(2);
  const std::string text = metrics->Render();
  EXPECT_THAT(text, HasSubstr("loopserve_x_total{kind=\"a\"} 2"));
  EXPECT_THAT(text, HasSubstr("loopserve_x_total{kind=\"b\"} 0"));
  EXPECT_THAT(text, HasSubstr("component=\"test\""));
  EXPECT_THAT(text, HasSubstr("process_resident_memory_bytes"));
}

TEST(Metrics, RefreshRunsBeforeEveryScrape) {
  auto metrics = Metrics::Create("test");
  Gauge& gauge = metrics->gauge("loopserve_g", "G.", {});
  int calls = 0;
  metrics->OnScrape([&] { gauge.Set(++calls); });
  EXPECT_THAT(metrics->Render(), HasSubstr("loopserve_g 1"));
  EXPECT_THAT(metrics->Render(), HasSubstr("loopserve_g 2"));
}

TEST(Metrics, TakenPortIsAnErrorWithTheWayOut) {
  auto first = Metrics::Create("a");
  auto second = Metrics::Create("b");
  const auto port = first->Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  const auto taken = second->Serve("127.0.0.1:" + std::to_string(*port));
  ASSERT_FALSE(taken.ok());
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr("--metrics-listen"));
}

TEST(Metrics, BucketsAscend) {
  for (const auto& bounds : {buckets::Ttft(), buckets::InterToken(), buckets::EndToEnd(),
                             buckets::Steps(), buckets::Return(), buckets::Counts(8192)}) {
    ASSERT_FALSE(bounds.empty());
    for (size_t i = 1; i < bounds.size(); ++i) EXPECT_LT(bounds[i - 1], bounds[i]);
  }
  EXPECT_EQ(buckets::Counts(8192).back(), 8192);
}

}  // namespace
}  // namespace loopserve::common
