// loopserve-step-profile: where the time of the engine's steps goes, as JSON on standard output.
//
//   loopserve-step-profile --model=F [--backend=auto] [--isa=auto] [--activation-bits=16]
//                          [--threads=N] [--rounds=3]
//                          [--case=ID: only this one]
//
// Each case runs on one rank whose backend is timed (bench/timed_backend.h), several rounds; the
// round of median wall time is told. A case that takes seconds runs once. "between" is the wall
// time of RankGroup::Run less that of all operations: the model's own code, the hand-off to the
// rank's thread and back, and the reading of the clock. limit_seconds is what the operation would
// take at the machine's limits (bench/machine_peaks.h), reading its bytes or computing, whichever
// takes longer; null for operations that are neither a matrix product nor attention.
//
// bench/draw_profile.py makes a picture and a table of it.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "bench/machine_peaks.h"
#include "bench/step_runner.h"
#include "bench/timed_backend.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLongSeconds = 2;  // what takes longer is not repeated
constexpr int64_t kBandwidthMebibytes = 512;

enum class Kind { kPrefill, kExtend, kDecode };

struct Case {
  const char* id;
  Kind kind;
  int64_t tokens;
  int64_t depth = 0;
  int64_t batch = 1;
};

constexpr Case kCases[] = {
    {"prefill_512", Kind::kPrefill, 512},         {"prefill_7k", Kind::kPrefill, 7168},
    {"extend_64_on_7k", Kind::kExtend, 64, 7168}, {"decode_b1_d0", Kind::kDecode, 64},
    {"decode_b1_d7k", Kind::kDecode, 64, 7168},   {"decode_b16_d0", Kind::kDecode, 64, 0, 16},
};

struct Options {
  std::string model;
  std::string only;  // a case's id; empty: all
  int rounds = 3;
  worker::RankGroupOptions ranks;
};

// --- What the machine could do

struct Machine {
  double bandwidth = 0;
  const char* arithmetic = nullptr;  // null: no peak is known
  double peak = 0;
  double weight_peak = 0;  // of products with weights: that of bytes if rows are rounded to these

  // The best of all measurements counts.
  void Measure(int threads, bool multiplies_bytes);
  double LimitSeconds(Op op, const OpTotals& totals) const {
    const double most = op == Op::kAttention ? peak : weight_peak;
    const double reading = totals.bytes / bandwidth;
    return most > 0 ? std::max(reading, totals.operations / most) : reading;
  }
};

void Machine::Measure(int threads, bool multiplies_bytes) {
  bandwidth = std::max(bandwidth, ReadBandwidth(kBandwidthMebibytes, threads));
  // The first that the machine has instructions for.
  const std::pair<const char*, Arithmetic> kinds[] = {
      {"bf16", Arithmetic::kBf16}, {"int8", Arithmetic::kInt8}, {"f32", Arithmetic::kF32}};
  for (const auto& [name, kind] : kinds) {
    if (arithmetic != nullptr && arithmetic != absl::string_view(name)) continue;
    const double found = PeakOperations(kind, threads);
    if (found == 0) continue;
    arithmetic = name;
    peak = std::max(peak, found);
    break;
  }
  const double bytes = multiplies_bytes ? PeakOperations(Arithmetic::kInt8, threads) : 0;
  weight_peak = std::max({weight_peak, peak, bytes});
}

// --- The cases

bool Fits(const Case& c, const worker::ModelConfig& config) {
  return c.depth + c.tokens <= config.context_tokens;
}

// Blocks for the longest prefill, which is let go of again, and the histories that stay.
uint32_t BlocksFor(const worker::ModelConfig& config, const kvstore::KvShape& shape) {
  int64_t prefill = 0;
  std::map<int64_t, std::pair<int64_t, int64_t>> histories;  // by depth: sequences, tokens behind
  for (const Case& c : kCases) {
    if (!Fits(c, config)) continue;
    if (c.kind == Kind::kPrefill) {
      prefill = std::max(prefill, c.tokens);
    } else {
      auto& [batch, tokens] = histories[c.depth];
      batch = std::max(batch, c.batch);
      tokens = std::max(tokens, c.tokens);
    }
  }
  int64_t blocks = shape.blocks_for(prefill);
  for (const auto& [depth, history] : histories) {
    blocks += history.first * shape.blocks_for(depth + history.second);
  }
  return static_cast<uint32_t>(std::max<int64_t>(blocks, 1));
}

// A runner whose only rank has a timed backend.
struct Profiler {
  std::unique_ptr<StepRunner> runner;
  TimedBackend* backend = nullptr;  // the runner's
};

absl::StatusOr<Profiler> MakeProfiler(const worker::GgufFile& file, const Options& options,
                                      const common::Clock& clock) {
  const worker::RankGroupOptions& ranks = options.ranks;
  ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(file));
  ASSIGN_OR_RETURN(auto inner, worker::CreateBackend({.name = ranks.backend,
                                                      .threads = ranks.threads,
                                                      .isa = ranks.isa,
                                                      .activation_bits = ranks.activation_bits}));
  auto backend = std::make_unique<TimedBackend>(std::move(inner), clock);
  Profiler profiler{.backend = backend.get()};
  worker::RankGroup::Rank rank{.backend = std::move(backend)};
  ASSIGN_OR_RETURN(
      rank.model, worker::LoadModel(file, config, {}, *profiler.backend, StepRunner::ModelSizes()));
  const kvstore::KvShape shape = worker::KvShapeOf(config, ranks.kv_dtype, ranks.block_tokens);
  ASSIGN_OR_RETURN(
      auto pool, kvstore::KvBlockPool::Create(shape, BlocksFor(config, shape),
                                              {{&profiler.backend->memory(), 0, config.kv_heads}}));
  std::vector<worker::RankGroup::Rank> parts;
  parts.push_back(std::move(rank));
  ASSIGN_OR_RETURN(
      auto group, worker::RankGroup::Assemble(std::move(parts), std::move(pool), ranks.step_timeout,
                                              common::Logger::Null()));
  profiler.runner = std::make_unique<StepRunner>(std::move(group));
  return profiler;
}

absl::StatusOr<double> Run(StepRunner& runner, const Case& c) {
  switch (c.kind) {
    case Kind::kPrefill:
      return runner.Prefill(c.tokens);
    case Kind::kExtend:
      return runner.Extend(c.tokens, c.depth);
    case Kind::kDecode:
      return runner.Decode(c.batch, c.depth, c.tokens);
  }
  return absl::InternalError("no such kind");
}

Json OpJson(Op op, const OpTotals& totals, double seconds, const Machine& machine) {
  const double wall = absl::ToDoubleSeconds(totals.wall);
  Json json = {
      {"id", std::string(OpName(op))}, {"calls", totals.calls}, {"seconds", wall},
      {"share", wall / seconds},       {"bytes", totals.bytes}, {"flops", totals.operations},
      {"limit_seconds", nullptr},      {"limit", nullptr}};
  if (totals.operations > 0) {
    const double limit = machine.LimitSeconds(op, totals);
    json["limit_seconds"] = limit;
    json["limit"] = limit / wall;
  }
  return json;
}

// One round of a case.
struct Round {
  double seconds = 0;
  std::array<OpTotals, kOps> totals;
};

Json CaseJson(const Case& c, const Round& round, size_t rounds, const Machine& machine) {
  Json operations = Json::array();
  double limit = 0, between = round.seconds;
  for (int i = 0; i < kOps; ++i) {
    const OpTotals& totals = round.totals[static_cast<size_t>(i)];
    if (totals.calls == 0) continue;
    operations.push_back(OpJson(static_cast<Op>(i), totals, round.seconds, machine));
    between -= absl::ToDoubleSeconds(totals.wall);
    if (totals.operations > 0) limit += machine.LimitSeconds(static_cast<Op>(i), totals);
  }
  const auto tokens = static_cast<double>(c.tokens * c.batch);
  return {{"id", c.id},
          {"rounds", rounds},
          {"tokens", c.tokens * c.batch},
          {"seconds", round.seconds},
          {"tokens_per_second", tokens / round.seconds},
          {"limit_seconds", limit},
          {"limit", limit / round.seconds},
          {"between_seconds", between},
          {"between_share", between / round.seconds},
          {"operations", std::move(operations)}};
}

absl::StatusOr<std::vector<Round>> Profile(const Profiler& profiler, const Case& c, int rounds) {
  if (c.kind != Kind::kPrefill) {
    RETURN_IF_ERROR(profiler.runner->Prepare(c.batch, c.depth, c.tokens));
  }
  std::vector<Round> done;
  while (static_cast<int>(done.size()) < rounds) {
    profiler.backend->Reset();
    Round round;
    ASSIGN_OR_RETURN(round.seconds, Run(*profiler.runner, c));
    round.totals = profiler.backend->totals();
    done.push_back(round);
    if (round.seconds > kLongSeconds) break;
  }
  return done;
}

// The median by wall time comes to stand in the middle.
const Round& Median(std::vector<Round>& rounds) {
  const auto middle = rounds.begin() + static_cast<int64_t>((rounds.size() - 1) / 2);
  std::nth_element(rounds.begin(), middle, rounds.end(),
                   [](const Round& a, const Round& b) { return a.seconds < b.seconds; });
  return *middle;
}

Json Document(const worker::RankGroup& ranks, int threads, const Machine& machine, Json cases) {
  return {{"bench", "step_profile"},
          {"model", ranks.config().name},
          {"backend", ranks.backend_name()},
          {"activation_format", ranks.activation_format()},
          {"threads", threads},
          {"bandwidth", machine.bandwidth},
          {"arithmetic", machine.arithmetic == nullptr ? Json(nullptr) : Json(machine.arithmetic)},
          {"peak", machine.peak},
          {"weight_peak", machine.weight_peak},
          {"cases", std::move(cases)}};
}

absl::Status ProfileAll(const Options& options) {
  const common::RealClock clock;
  ASSIGN_OR_RETURN(const auto file, worker::GgufFile::Open(options.model));
  ASSIGN_OR_RETURN(const Profiler profiler, MakeProfiler(*file, options, clock));
  const worker::RankGroup& ranks = profiler.runner->ranks();
  const bool multiplies_bytes = ranks.activation_format() == "8";
  Machine machine;
  std::vector<std::pair<const Case*, std::vector<Round>>> measured;
  for (const Case& c : kCases) {
    if (!options.only.empty() && options.only != c.id) continue;
    if (!Fits(c, ranks.config())) {
      std::fprintf(stderr, "loopserve-step-profile: %s exceeds the model's context\n", c.id);
      continue;
    }
    std::fprintf(stderr, "loopserve-step-profile: %s\n", c.id);
    machine.Measure(options.ranks.threads, multiplies_bytes);
    ASSIGN_OR_RETURN(auto rounds, Profile(profiler, c, options.rounds));
    measured.emplace_back(&c, std::move(rounds));
  }
  if (measured.empty()) return absl::NotFoundError("no case is left");
  machine.Measure(options.ranks.threads, multiplies_bytes);
  Json cases = Json::array();
  for (auto& [c, rounds] : measured) {
    cases.push_back(CaseJson(*c, Median(rounds), rounds.size(), machine));
  }
  std::printf("%s\n",
              Document(ranks, options.ranks.threads, machine, std::move(cases)).dump(1).c_str());
  return absl::OkStatus();
}

bool ParseFlag(absl::string_view arg, Options& options) {
  if (absl::ConsumePrefix(&arg, "--model=")) {
    options.model = std::string(arg);
    return true;
  }
  if (absl::ConsumePrefix(&arg, "--case=")) {
    options.only = std::string(arg);
    return true;
  }
  if (absl::ConsumePrefix(&arg, "--rounds=")) {
    return absl::SimpleAtoi(arg, &options.rounds) && options.rounds > 0;
  }
  return ParseRankFlag(arg, options.ranks);
}

int Main(int argc, char** argv) {
  Options options;
  options.ranks.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (int i = 1; i < argc; ++i) {
    if (!ParseFlag(argv[i], options)) {
      std::fprintf(stderr, "loopserve-step-profile: bad flag %s\n", argv[i]);
      return 2;
    }
  }
  if (options.model.empty()) {
    std::fprintf(stderr, "loopserve-step-profile: --model is needed\n");
    return 2;
  }
  const absl::Status status = ProfileAll(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "loopserve-step-profile: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace loopserve::bench

int main(int argc, char** argv) { return loopserve::bench::Main(argc, argv); }
