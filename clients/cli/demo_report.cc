#include "clients/cli/demo_report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/demo_script.h"
#include "clients/cli/report.h"

namespace loopserve::clients {
namespace {

using nlohmann::json;

std::string AfterWords(const std::string& after) {
  if (after == "worker_killed") return "worker killed";
  if (after == "cluster_restarted") return "cluster restarted";
  return "";
}

}  // namespace

std::vector<std::string> BrokenPromises(const DemoResult& result) {
  std::vector<std::string> broken;
  for (const DemoTurn& turn : result.turns) {
    const types::v1::Usage& usage = turn.outcome.done.usage();
    const std::string name = absl::StrCat("turn ", turn.outcome.started.turn());
    if (!AddsUp(usage)) {
      broken.push_back(
          absl::StrCat(name, ": computed and restored tokens do not sum to the prompt's"));
    }
    if (turn.must_mention && !Mentions(turn.outcome.text, kDemoAnswer)) {
      broken.push_back(absl::StrCat(name, ": the answer does not mention \"", kDemoAnswer, "\""));
    }
    if (turn.must_restore && RestoredTokens(usage) <= usage.computed_tokens()) {
      broken.push_back(absl::StrCat(name, ": most of the prompt was computed, not restored"));
    }
  }
  if (result.history_tokens < kDemoHistoryTokens) {
    broken.push_back(absl::StrCat("the history has ", result.history_tokens, " tokens, wanted ",
                                  kDemoHistoryTokens));
  }
  if (result.restored_ttft_ms >= result.reprefill_ttft_ms) {
    broken.push_back("restoring was not faster than computing again");
  }
  return broken;
}

json DemoJson(const DemoResult& result) {
  json turns = json::array();
  for (const DemoTurn& turn : result.turns) {
    const types::v1::Usage& usage = turn.outcome.done.usage();
    turns.push_back({{"session", turn.outcome.started.session_id()},
                     {"turn", turn.outcome.started.turn()},
                     {"worker", turn.outcome.started.worker_id()},
                     {"prompt_tokens", usage.prompt_tokens()},
                     {"computed_tokens", usage.computed_tokens()},
                     {"restored_tokens", RestoredJson(usage)},
                     {"ttft_ms", turn.outcome.ttft_ms},
                     {"tokens_per_s", turn.outcome.done.timings().tokens_per_second()},
                     {"text", turn.outcome.text},
                     {"after", turn.after}});
  }
  return {{"turns", std::move(turns)},
          {"reprefill_ttft_ms", result.reprefill_ttft_ms},
          {"ok", BrokenPromises(result).empty()}};
}

std::string DemoTable(const DemoResult& result) {
  std::string table = absl::StrFormat("%4s  %-17s  %-6s  %6s  %8s  %6s  %6s  %6s  %6s  %11s\n",
                                      "turn", "after", "worker", "prompt", "computed", "device",
                                      "host", "disk", "remote", "first token");
  for (const DemoTurn& turn : result.turns) {
    const types::v1::Usage& usage = turn.outcome.done.usage();
    absl::StrAppend(&table,
                    absl::StrFormat("%4d  %-17s  %-6s  %6d  %8d  %6d  %6d  %6d  %6d  %8.0f ms\n",
                                    turn.outcome.started.turn(), AfterWords(turn.after),
                                    turn.outcome.started.worker_id(), usage.prompt_tokens(),
                                    usage.computed_tokens(), usage.restored_device_tokens(),
                                    usage.restored_host_tokens(), usage.restored_disk_tokens(),
                                    usage.restored_remote_tokens(), turn.outcome.ttft_ms));
  }
  absl::StrAppend(
      &table,
      absl::StrFormat(
          "\nThe same question about the same %s tokens:\n"
          "  restored     first token after %6.0f ms\n"
          "  re-prefilled first token after %6.0f ms (%.1f times as long)\n",
          FormatCount(result.history_tokens), result.restored_ttft_ms, result.reprefill_ttft_ms,
          result.restored_ttft_ms > 0 ? result.reprefill_ttft_ms / result.restored_ttft_ms : 0.0));
  return table;
}

}  // namespace loopserve::clients
