#include "clients/cli/bench_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/report.h"
#include "common/error.h"

namespace loopserve::clients {
namespace {

using nlohmann::json;

double Ratio(double part, double whole) { return whole == 0 ? 0 : part / whole; }

double Quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
}

json SummaryJson(const Summary& summary) {
  return {{"mean", summary.mean},
          {"median", summary.median},
          {"p99", summary.p99},
          {"count", summary.count}};
}

// Where most of the restored tokens came from, or "computed".
std::string MainSource(const types::v1::Usage& usage) {
  std::string best = "computed";
  uint64_t most = 0;
  for (const auto& [place, tokens] : RestoredByPlace(usage)) {
    if (tokens > most) {
      most = tokens;
      best = place;
    }
  }
  return best;
}

struct Tally {
  size_t completed = 0, failed = 0, returning = 0, retained = 0;
  uint64_t input = 0, output = 0, accounting_errors = 0;
  std::map<std::string, uint64_t> by_source = {
      {"computed", 0}, {"device", 0}, {"host", 0}, {"disk", 0}, {"remote", 0}};
  std::vector<double> ttft, tpot, itl, e2el, first_ttft, returning_ttft;
  std::map<std::string, std::vector<double>> returning_by_source;
  std::map<std::string, uint64_t> errors;
};

void AddLatencies(const LoadTurn& turn, Tally& tally) {
  const TurnOutcome& outcome = turn.outcome;
  const double output = static_cast<double>(outcome.done.usage().completion_tokens());
  tally.ttft.push_back(outcome.ttft_ms);
  tally.e2el.push_back(outcome.total_ms);
  if (output > 1) tally.tpot.push_back((outcome.total_ms - outcome.ttft_ms) / (output - 1));
  tally.itl.insert(tally.itl.end(), outcome.gaps_ms.begin(), outcome.gaps_ms.end());
  if (turn.turn == 0) {
    tally.first_ttft.push_back(outcome.ttft_ms);
    return;
  }
  tally.returning_ttft.push_back(outcome.ttft_ms);
  tally.returning_by_source[MainSource(outcome.done.usage())].push_back(outcome.ttft_ms);
  ++tally.returning;
  if (outcome.started.worker_id() == turn.worker_before) ++tally.retained;
}

Tally Count(const LoadResult& result) {
  Tally tally;
  for (const LoadTurn& turn : result.turns) {
    if (!turn.status.ok()) {
      ++tally.failed;
      const common::Reason reason = common::InfoOf(turn.status).reason;
      ++tally.errors[reason == common::Reason::kNone ? absl::StatusCodeToString(turn.status.code())
                                                     : std::string(common::NameOf(reason))];
      continue;
    }
    ++tally.completed;
    const types::v1::Usage& usage = turn.outcome.done.usage();
    tally.input += usage.prompt_tokens();
    tally.output += usage.completion_tokens();
    tally.accounting_errors += AddsUp(usage) ? 0 : 1;
    tally.by_source["computed"] += usage.computed_tokens();
    for (const auto& [place, tokens] : RestoredByPlace(usage)) {
      tally.by_source[place] += tokens;
    }
    AddLatencies(turn, tally);
  }
  return tally;
}

}  // namespace

Summary Summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {sum / static_cast<double>(values.size()), Quantile(values, 0.5), Quantile(values, 0.99),
          values.size()};
}

json LoadJson(const LoadOptions& options, const LoadResult& result) {
  const Tally tally = Count(result);
  json report = {
      {"users", options.users},
      {"turns", options.turns},
      {"think_time_s", options.think_time_s},
      {"seed", options.seed},
      {"completed", tally.completed},
      {"failed", tally.failed},
      {"lost_turns", tally.failed},
      {"accounting_errors", tally.accounting_errors},
      {"errors", tally.errors},
      {"duration", result.duration_s},
      {"total_input_tokens", tally.input},
      {"total_output_tokens", tally.output},
      {"request_throughput", Ratio(static_cast<double>(tally.completed), result.duration_s)},
      {"output_throughput", Ratio(static_cast<double>(tally.output), result.duration_s)},
      {"total_token_throughput",
       Ratio(static_cast<double>(tally.input + tally.output), result.duration_s)},
      {"session_retain_ratio",
       Ratio(static_cast<double>(tally.retained), static_cast<double>(tally.returning))},
      {"cached_token_ratio",
       Ratio(static_cast<double>(tally.input - tally.by_source.at("computed")),
             static_cast<double>(tally.input))},
      {"tokens_by_source", tally.by_source},
      {"first_turn_ttft_ms", SummaryJson(Summarize(tally.first_ttft))},
      {"returning_turn_ttft_ms", SummaryJson(Summarize(tally.returning_ttft))}};
  const std::pair<const char*, const std::vector<double>*> latencies[] = {
      {"ttft", &tally.ttft}, {"tpot", &tally.tpot}, {"itl", &tally.itl}, {"e2el", &tally.e2el}};
  for (const auto& [name, values] : latencies) {
    const Summary summary = Summarize(*values);
    report[absl::StrCat("mean_", name, "_ms")] = summary.mean;
    report[absl::StrCat("median_", name, "_ms")] = summary.median;
    report[absl::StrCat("p99_", name, "_ms")] = summary.p99;
  }
  json by_source = json::object();
  for (const auto& [source, values] : tally.returning_by_source) {
    by_source[source] = SummaryJson(Summarize(values));
  }
  report["returning_turn_ttft_ms_by_source"] = std::move(by_source);
  return report;
}

std::vector<std::string> MissedThresholds(const LoadThresholds& thresholds, const json& report) {
  std::vector<std::string> missed;
  const auto check = [&](const char* name, const std::optional<double>& limit, double actual,
                         bool at_most) {
    if (!limit || (at_most ? actual <= *limit : actual >= *limit)) return;
    missed.push_back(absl::StrFormat("%s is %.4g, wanted at %s %.4g", name, actual,
                                     at_most ? "most" : "least", *limit));
  };
  check("median first-turn TTFT (ms)", thresholds.first_ttft_ms,
        report["first_turn_ttft_ms"]["median"].get<double>(), true);
  check("median returning-turn TTFT (ms)", thresholds.returning_ttft_ms,
        report["returning_turn_ttft_ms"]["median"].get<double>(), true);
  check("session retain ratio", thresholds.retain_ratio,
        report["session_retain_ratio"].get<double>(), false);
  check("cached token ratio", thresholds.cached_ratio, report["cached_token_ratio"].get<double>(),
        false);
  return missed;
}

std::string LoadTable(const json& report) {
  std::string table = absl::StrFormat(
      "%d turns in %.1f s, %d lost; %.2f turns/s, %.1f tokens/s out, %.0f tokens/s in all\n",
      report["completed"].get<size_t>(), report["duration"].get<double>(),
      report["failed"].get<size_t>(), report["request_throughput"].get<double>(),
      report["output_throughput"].get<double>(), report["total_token_throughput"].get<double>());
  absl::StrAppend(&table, absl::StrFormat("%-26s %9s %9s %9s\n", "", "mean", "median", "p99"));
  const auto row = [&](const std::string& name, double mean, double median, double p99) {
    absl::StrAppend(&table, absl::StrFormat("%-26s %9.1f %9.1f %9.1f\n", name, mean, median, p99));
  };
  const auto summary_row = [&](const std::string& name, const json& summary) {
    row(absl::StrFormat("%s (%d)", name, summary["count"].get<size_t>()),
        summary["mean"].get<double>(), summary["median"].get<double>(),
        summary["p99"].get<double>());
  };
  summary_row("TTFT ms, first", report["first_turn_ttft_ms"]);
  summary_row("TTFT ms, returning", report["returning_turn_ttft_ms"]);
  for (const auto& [source, summary] : report["returning_turn_ttft_ms_by_source"].items()) {
    summary_row("  mostly " + source, summary);
  }
  for (const char* name : {"tpot", "itl", "e2el"}) {
    row(absl::StrCat(name, " ms"), report[absl::StrCat("mean_", name, "_ms")].get<double>(),
        report[absl::StrCat("median_", name, "_ms")].get<double>(),
        report[absl::StrCat("p99_", name, "_ms")].get<double>());
  }
  absl::StrAppend(&table,
                  absl::StrFormat("returning turns on the same worker %.1f%%; prompt tokens "
                                  "restored %.1f%%:",
                                  100 * report["session_retain_ratio"].get<double>(),
                                  100 * report["cached_token_ratio"].get<double>()));
  for (const auto& [source, tokens] : report["tokens_by_source"].items()) {
    absl::StrAppend(&table, " ", source, " ", FormatCount(tokens.get<uint64_t>()));
  }
  return table + "\n";
}

}  // namespace loopserve::clients
