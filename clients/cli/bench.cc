#include <unistd.h>

#include <atomic>
#include <memory>
#include <ostream>

#include "absl/strings/str_format.h"
#include "clients/cli/bench_load.h"
#include "clients/cli/bench_report.h"
#include "clients/cli/context.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/progress.h"

namespace loopserve::clients {
namespace {

struct BenchOptions {
  LoadOptions load;
  LoadThresholds thresholds;
};

void ShowProgress(const LoadOptions& options, const std::vector<LoadTurn>& turns,
                  Progress& progress) {
  const size_t total = static_cast<size_t>(options.users) * static_cast<size_t>(options.turns);
  size_t lost = 0;
  for (const LoadTurn& turn : turns) lost += turn.status.ok() ? 0 : 1;
  progress.Update(absl::StrFormat("%d of %d turns, %d lost", turns.size(), total, lost),
                  static_cast<double>(turns.size()) / static_cast<double>(total));
}

// Tells the first of the turns that were lost, as a hint at why.
int TellLost(const LoadResult& result, const Context& context) {
  for (const LoadTurn& turn : result.turns) {
    if (!turn.status.ok()) return Fail(context, turn.status);
  }
  return kDone;
}

int RunBench(const BenchOptions& options, Context& context) {
  InterruptWatcher::Block();
  Client client(ResolveTarget(context));
  const auto models = client.ListModels();
  if (!models.ok()) return Fail(context, models.status());
  std::atomic<bool> stop = false;
  std::atomic<int> signal_number = 0;
  InterruptWatcher watcher([&](int signal, int earlier) {
    if (earlier > 0) _exit(128 + signal);
    signal_number = signal;
    stop = true;
  });
  Progress progress(*context.err, context.err_is_terminal);
  const LoadResult result = RunLoad(
      options.load, client, stop,
      [&](const std::vector<LoadTurn>& turns) { ShowProgress(options.load, turns, progress); });
  progress.Clear();
  const nlohmann::json report = LoadJson(options.load, result);
  if (context.json) {
    PrintJson(context, report);
  } else {
    *context.out << LoadTable(report) << std::flush;
  }
  if (signal_number != 0) return 128 + signal_number;
  if (const int code = TellLost(result, context); code != kDone) return code;
  const std::vector<std::string> missed = MissedThresholds(options.thresholds, report);
  for (const std::string& line : missed) *context.err << "missed: " << line << "\n";
  return missed.empty() ? kDone : kThresholdMissed;
}

void AddLoadOptions(CLI::App& bench, LoadOptions& load) {
  const CLI::Range count(1, 1000000);
  bench.add_option("--users", load.users, "Conversations at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  bench.add_option("--turns", load.turns, "Turns of each")->capture_default_str()->check(count);
  bench.add_option("--think-time", load.think_time_s, "Mean seconds between answer and next turn")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 86400.0));
  bench.add_option("--prompt-tokens", load.prompt_tokens, "Length of the first message, about")
      ->capture_default_str()
      ->check(count);
  bench.add_option("--new-tokens", load.new_tokens, "Length of later messages, about")
      ->capture_default_str()
      ->check(count);
  bench.add_option("--max-tokens", load.max_tokens, "Length of each answer")
      ->capture_default_str()
      ->check(count);
  bench.add_option("--seed", load.seed, "Same seed, same texts")->capture_default_str();
}

}  // namespace

void command_bench(CLI::App& app, Context& context) {
  CLI::App* bench = app.add_subcommand("bench", "Closed-loop load of multi-turn conversations");
  auto options = std::make_shared<BenchOptions>();
  AddLoadOptions(*bench, options->load);
  LoadThresholds& thresholds = options->thresholds;
  bench->add_option("--max-first-ttft-ms", thresholds.first_ttft_ms,
                    "Exit 3 when the median of first turns is above");
  bench->add_option("--max-returning-ttft-ms", thresholds.returning_ttft_ms,
                    "Exit 3 when the median of returning turns is above");
  bench->add_option("--min-retain-ratio", thresholds.retain_ratio,
                    "Exit 3 when fewer returning turns meet their worker");
  bench->add_option("--min-cached-ratio", thresholds.cached_ratio,
                    "Exit 3 when fewer prompt tokens are restored");
  AddTargetOptions(*bench, context);
  AddJsonOption(*bench, context);
  bench->callback([options, &context] {
    context.run = [options, &context] { return RunBench(*options, context); };
  });
}

}  // namespace loopserve::clients
