#include "router/router_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace loopserve::router {
namespace {

using ::testing::HasSubstr;

// Names of the table rows under "## loopserve-router" in docs/metrics.md.
std::set<std::string> DocumentedNames() {
  std::ifstream file("docs/metrics.md");
  std::set<std::string> names;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "## ")) inside = line == "## loopserve-router";
    if (!inside || !absl::StartsWith(line, "| `loopserve_")) continue;
    const std::vector<std::string> parts = absl::StrSplit(line, '`');
    names.insert(parts[1]);
  }
  return names;
}

std::set<std::string> ExportedNames(common::Metrics& metrics) {
  std::set<std::string> names;
  for (const absl::string_view line : absl::StrSplit(metrics.Render(), '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words.size() > 2 && words[0] == "#" && words[1] == "TYPE" &&
        absl::StartsWith(words[2], "loopserve_") && words[2] != "loopserve_build_info") {
      names.insert(words[2]);
    }
  }
  return names;
}

size_t CountLines(const std::string& text, absl::string_view part) {
  size_t count = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::StartsWith(line, "#") && absl::StrContains(line, part)) ++count;
  }
  return count;
}

TEST(RouterMetricsTest, ExportsWhatTheDocumentLists) {
  const auto metrics = common::Metrics::Create("router");
  RouterMetrics router(*metrics, {common::WorkerId("w1"), common::WorkerId("w2")});
  EXPECT_FALSE(DocumentedNames().empty());
  EXPECT_EQ(ExportedNames(*metrics), DocumentedNames());
}

TEST(RouterMetricsTest, EverySeriesOfAModelExistsAtZero) {
  const auto metrics = common::Metrics::Create("router");
  RouterMetrics router(*metrics, {common::WorkerId("w1")});
  router.AddModel("m");
  router.AddModel("m");
  router.AddModel("");
  const std::string text = metrics->Render();
  for (const char* model : {"unknown", "m"}) {
    const std::string label = absl::StrCat("model=\"", model, "\"");
    const auto count = [&](absl::string_view name) {
      size_t n = 0;
      for (const absl::string_view line : absl::StrSplit(text, '\n')) {
        if (absl::StartsWith(line, absl::StrCat(name, "{")) && absl::StrContains(line, label)) {
          EXPECT_TRUE(absl::EndsWith(line, " 0")) << line;
          ++n;
        }
      }
      return n;
    };
    EXPECT_EQ(count("loopserve_requests_total"), 4u * 17);
    EXPECT_EQ(count("loopserve_request_rejected_total"), 4u);
    EXPECT_EQ(count("loopserve_request_aborted_total"), 4u);
    EXPECT_EQ(count("loopserve_session_affinity_total"), 4u * 5);
    EXPECT_EQ(count("loopserve_session_moves_total"), 4u);
    EXPECT_EQ(count("loopserve_route_decisions_total"), 2u);
    EXPECT_EQ(count("loopserve_request_inflight"), 1u);
  }
  EXPECT_EQ(CountLines(text, "model=\"\""), 0u);
  EXPECT_EQ(CountLines(text, "loopserve_directory_events_total{"), 6u);
  EXPECT_EQ(CountLines(text, "loopserve_worker_retries_total{"), 3u);
}

TEST(RouterMetricsTest, AnUnservedModelCountsAsUnknown) {
  const auto metrics = common::Metrics::Create("router");
  RouterMetrics router(*metrics, {});
  router.ForModel("nope").rejected[Rejection::kDraining].Increment();
  EXPECT_THAT(
      metrics->Render(),
      HasSubstr("loopserve_request_rejected_total{model=\"unknown\",reason=\"draining\"} 1"));
  EXPECT_EQ(router.ForWorker(common::WorkerId("w1")), nullptr);
}

}  // namespace
}  // namespace loopserve::router
