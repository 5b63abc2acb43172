// Numbers out of a load: pure. JSON keys are those of vLLM's `bench serve`, plus ours.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "clients/cli/bench_load.h"
#include "nlohmann/json.hpp"

namespace loopserve::clients {

struct Summary {
  double mean = 0, median = 0, p99 = 0;
  size_t count = 0;
};
Summary Summarize(std::vector<double> values);

struct LoadThresholds {
  std::optional<double> first_ttft_ms;      // median, at most
  std::optional<double> returning_ttft_ms;  // median, at most
  std::optional<double> retain_ratio;       // at least
  std::optional<double> cached_ratio;       // at least
};

nlohmann::json LoadJson(const LoadOptions& options, const LoadResult& result);
// A line per threshold that was missed.
std::vector<std::string> MissedThresholds(const LoadThresholds& thresholds,
                                          const nlohmann::json& report);
// A table for people out of the same numbers.
std::string LoadTable(const nlohmann::json& report);

}  // namespace loopserve::clients
