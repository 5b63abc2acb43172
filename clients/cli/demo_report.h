// What `loopserve demo` measured, and whether it is as promised: pure.
#pragma once

#include <string>
#include <vector>

#include "clients/cli/client.h"
#include "nlohmann/json.hpp"

namespace loopserve::clients {

struct DemoTurn {
  TurnOutcome outcome;
  std::string after;          // normal, worker_killed, cluster_restarted
  bool must_mention = true;   // the fact of the first turn
  bool must_restore = false;  // most of the prompt
};

struct DemoResult {
  std::vector<DemoTurn> turns;
  double reprefill_ttft_ms = 0;  // the same history and question, computed from scratch
  double restored_ttft_ms = 0;   // and restored
  uint64_t history_tokens = 0;   // prompt tokens of both
};

inline constexpr uint64_t kDemoHistoryTokens = 3000;  // at least so many

// A sentence for each promise that was not kept.
std::vector<std::string> BrokenPromises(const DemoResult& result);
nlohmann::json DemoJson(const DemoResult& result);
// The table at the end.
std::string DemoTable(const DemoResult& result);

}  // namespace loopserve::clients
