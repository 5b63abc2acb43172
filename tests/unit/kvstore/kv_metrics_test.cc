#include "kvstore/kv_metrics.h"

#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using ::testing::HasSubstr;

TEST(KvMetricsTest, ErrorsHaveKinds) {
  EXPECT_EQ(KindOf(absl::DataLossError("")), KvErrorKind::kChecksum);
  EXPECT_EQ(KindOf(absl::DeadlineExceededError("")), KvErrorKind::kTimeout);
  EXPECT_EQ(KindOf(absl::UnimplementedError("")), KvErrorKind::kVersion);
  EXPECT_EQ(KindOf(absl::UnavailableError("")), KvErrorKind::kIo);
}

// The names of loopserve_kv_* and loopserve_restore_* in one section of docs/metrics.md, without
// those that carry a model (the worker's engine counts them).
std::set<std::string> Documented(absl::string_view section) {
  std::ifstream file("docs/metrics.md");
  std::set<std::string> names;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("## ", 0) == 0) inside = line == absl::StrCat("## ", section);
    const bool ours =
        line.rfind("| `loopserve_kv_", 0) == 0 || line.rfind("| `loopserve_restore_", 0) == 0;
    if (!inside || !ours || line.find("model=*") != std::string::npos) continue;
    names.insert(std::vector<std::string>(absl::StrSplit(line, '`'))[1]);
  }
  return names;
}

std::set<std::string> Exported(common::Metrics& metrics) {
  std::set<std::string> names;
  const std::string text = metrics.Render();
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::ConsumePrefix(&line, "# TYPE ")) continue;
    const std::string name(line.substr(0, line.find(' ')));
    if (name.rfind("loopserve_kv_", 0) == 0 || name.rfind("loopserve_restore_", 0) == 0) {
      names.insert(name);
    }
  }
  return names;
}

TEST(KvMetricsTest, TheSeriesAreThoseOfTheTable) {
  for (const auto& [role, section] : {std::pair{KvRole::kWorker, "loopserve-worker"},
                                      std::pair{KvRole::kNode, "loopserve-kvstore"}}) {
    const auto metrics = common::Metrics::Create("test");
    const KvMetrics kv(*metrics, role);
    const std::set<std::string> documented = Documented(section);
    std::set<std::string> wanted;
    for (const std::string& name : documented) {
      if (name.rfind("loopserve_kvstore_", 0) != 0) wanted.insert(name);
    }
    ASSERT_FALSE(wanted.empty());
    EXPECT_EQ(Exported(*metrics), wanted) << section;
  }
}

TEST(KvMetricsTest, EverySeriesIsThereAtZero) {
  const auto metrics = common::Metrics::Create("test");
  const KvMetrics kv(*metrics);
  const std::string text = metrics->Render();
  EXPECT_THAT(text, HasSubstr("loopserve_kv_errors_total{kind=\"version\",tier=\"remote\"} 0"));
  EXPECT_THAT(text, HasSubstr("loopserve_restore_plans_total{decision=\"abandoned\"} 0"));
  EXPECT_THAT(text, HasSubstr("loopserve_kv_blocks{state=\"cached\",tier=\"device\"} 0"));
}

TEST(KvMetricsTest, GaugesFollowTheirSource) {
  const auto metrics = common::Metrics::Create("test");
  KvMetrics kv(*metrics);
  UsageByPlace usage{};
  usage[static_cast<size_t>(Place::kDisk)] = {7, 9, 1};
  kv.SetUsageSource([&] { return usage; });
  EXPECT_THAT(metrics->Render(), HasSubstr("loopserve_kv_used_bytes{plane=\"0\",tier=\"disk\"} 7"));
  EXPECT_THAT(metrics->Render(), HasSubstr("loopserve_kv_capacity_bytes{tier=\"disk\"} 9"));
  kv.SetUsageSource(nullptr);
  EXPECT_THAT(metrics->Render(), HasSubstr("loopserve_kv_used_bytes{plane=\"0\",tier=\"disk\"} 0"));
}

TEST(KvMetricsTest, DeviceBlocksBecomeBytes) {
  const auto metrics = common::Metrics::Create("test");
  KvMetrics kv(*metrics);
  kv.SetDeviceBlocks(5, 3, 2, 100);
  const std::string text = metrics->Render();
  EXPECT_THAT(text, HasSubstr("loopserve_kv_capacity_bytes{tier=\"device\"} 1000"));
  EXPECT_THAT(text, HasSubstr("loopserve_kv_used_bytes{plane=\"0\",tier=\"device\"} 500"));
  EXPECT_THAT(text, HasSubstr("loopserve_kv_blocks{state=\"active\",tier=\"device\"} 3"));
}

}  // namespace
}  // namespace loopserve::kvstore
