// loopserve-gpu-step: times steps of a model of random weights, which needs no file, on any
// backend.
//
//   loopserve-gpu-step --shape=8b --weights=bf16 --backend=cuda --mode=decode --batch=1 --depth=0
//   loopserve-gpu-step --shape=8b --weights=bf16 --backend=cuda --serve
//
//   --shape=8b|1b|tiny  --weights=bf16|q4_0|q8_0|f32  --kv-dtype=bf16|int8|fp8  --backend=auto
//   --threads=N  --step-tokens=N: rows of the largest step  --kv-tokens=N: what the KV pool holds
//   --mode=decode|prefill|extend, with --batch=B, --depth=D, --rows=T, --chunk=C and --steps=N
//   --sampling=greedy|drawn|logits: what comes back of a step, the best tokens, tokens drawn at
//   temperature 1 with top_p 0.95 and one log probability each, or the logits themselves
//
// With --serve it prints one line of JSON when it is ready and answers each line on standard input
// with another, so that one can measure in turns with something else:
//
//   decode BATCH DEPTH STEPS   STEPS tokens of each of BATCH sequences behind DEPTH tokens of KV
//   sampling KIND              from now on, as the flag
//   prefill ROWS CHUNK STEPS   ROWS tokens in steps of CHUNK (0: of the largest), STEPS times
//   extend ROWS DEPTH STEPS    ROWS tokens behind DEPTH tokens of KV, in one step, STEPS times
//   restore BLOCKS DEPTH STEPS moves BLOCKS blocks of KV to the device, back, and once more while
//                              a batch of 8 decodes behind DEPTH tokens
//   forget                     lets go of the KV that decode and extend keep
//
// An answer says the median and the fastest time of one step (of a whole prefill), the bytes of
// weights and KV that have to be read in it and its multiplications and additions; or "error". The
// KV behind which is decoded is random. Times are those of RankGroup::Run: the host's part and the
// way of tokens or logits to the host are in them.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "bench/restore_rates.h"
#include "bench/step_runner.h"
#include "bench/synthetic_model.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/rank_group.h"

namespace loopserve::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxBatch = 128;
constexpr int64_t kWarmSteps = 3;
constexpr int64_t kRestoreBatch = 8;
constexpr int64_t kGiB = int64_t{1} << 30;

enum class Kind { kDecode, kPrefill, kExtend };
constexpr const char* kNames[] = {"decode", "prefill", "extend"};

enum class Sampling { kGreedy, kDrawn, kLogits };
constexpr const char* kSamplings[] = {"greedy", "drawn", "logits"};

// One measurement.
struct Work {
  Kind kind = Kind::kDecode;
  int64_t batch = 1;
  int64_t depth = 0;
  int64_t rows = 512;
  int64_t chunk = 0;
  int64_t steps = 32;
};

struct Options {
  std::string shape = "8b";
  std::string weights = "bf16";
  int64_t step_tokens = 2048;
  int64_t kv_tokens = 40960;
  bool serve = false;
  Sampling sampling = Sampling::kGreedy;
  Work work;
  worker::RankGroupOptions ranks;
};

// What a step has to do at least.
struct Costs {
  double matrix_bytes = 0;  // of all matrices that a step multiplies with, as they are held
  double layer_weights = 0, head_weights = 0;
  double token_bytes = 0;  // of KV
  double pair_flops = 0;   // of one query row and one key, in all layers

  Costs(const ModelShape& shape, const worker::GgufFile& file, const kvstore::KvShape& kv,
        absl::string_view activation_format);
  double Flops(double tokens, double depth, double logits) const {
    const double pairs = tokens * depth + tokens * (tokens + 1) / 2;
    return 2 * tokens * layer_weights + 2 * logits * head_weights + pairs * pair_flops;
  }
};

Costs::Costs(const ModelShape& shape, const worker::GgufFile& file, const kvstore::KvShape& kv,
             absl::string_view activation_format)
    : token_bytes(static_cast<double>(kv.token_bytes())),
      pair_flops(4.0 * shape.q_heads * shape.head_dim * shape.layers) {
  for (const worker::GgufFile::Tensor& tensor : file.tensors()) {
    const worker::WeightView& view = tensor.view;
    const bool is_table = tensor.name == "token_embd.weight";
    if (tensor.dims.size() < 2 || (is_table && !shape.tied)) continue;
    const auto weights = static_cast<double>(view.rows) * static_cast<double>(view.cols);
    const bool is_head = is_table || tensor.name == "output.weight";
    const bool is_e4m3 =
        activation_format == "e4m3" && !is_head && worker::InfoOf(view.type).block_values == 1;
    matrix_bytes += is_e4m3
                        ? weights + 4.0 * static_cast<double>(view.rows)
                        : static_cast<double>(view.row_bytes()) * static_cast<double>(view.rows);
    (is_head ? head_weights : layer_weights) += weights;
  }
}

class Bench {
 public:
  static absl::StatusOr<std::unique_ptr<Bench>> Create(const Options& options);
  // Of the model and what it runs on.
  Json Ready() const;
  absl::StatusOr<Json> Measure(const Work& work);
  absl::StatusOr<Json> Restore(int64_t blocks, int64_t depth, int64_t steps);
  void SampleAs(Sampling sampling);
  void Forget() { runner_->Forget(); }

 private:
  Bench(const Options& options, std::unique_ptr<SyntheticModel> model, ModelShape shape)
      : options_(options), model_(std::move(model)), shape_(shape) {}
  absl::StatusOr<std::vector<double>> Times(const Work& work);
  Json Answer(const Work& work, std::vector<double> times) const;

  const Options options_;
  Sampling sampling_ = Sampling::kLogits;
  const std::unique_ptr<SyntheticModel> model_;
  const ModelShape shape_;
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<Costs> costs_;
  double load_seconds_ = 0;
};

absl::StatusOr<std::unique_ptr<Bench>> Bench::Create(const Options& options) {
  const auto shape = FindShape(options.shape);
  const auto weights = FindWeights(options.weights);
  if (!shape.has_value() || !weights.has_value()) {
    return absl::NotFoundError(
        absl::StrCat("no model of shape ", options.shape, " in ", options.weights));
  }
  ASSIGN_OR_RETURN(auto model, SyntheticModel::Create(*shape, *weights));
  std::unique_ptr<Bench> bench(new Bench(options, std::move(model), *shape));
  const worker::GgufFile& file = bench->model_->file();
  worker::RankGroupOptions ranks = options.ranks;
  ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(file));
  const kvstore::KvShape kv = worker::KvShapeOf(config, ranks.kv_dtype, ranks.block_tokens);
  ranks.kv_device_bytes = kv.token_bytes() * static_cast<uint64_t>(options.kv_tokens);
  ranks.model = {.max_step_tokens = options.step_tokens,
                 .max_logit_rows = kMaxBatch,
                 .max_positions = config.context_tokens};
  // The weights are not as large as they look, and not in the host's memory.
  if (ranks.backend == "cuda") ranks.available_bytes = uint64_t{1} << 50;
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(auto group, worker::RankGroup::Create(file, ranks, common::Logger::Null()));
  bench->load_seconds_ = absl::ToDoubleSeconds(absl::Now() - start);
  bench->costs_ = std::make_unique<Costs>(*shape, file, kv, group->activation_format());
  bench->runner_ = std::make_unique<StepRunner>(
      std::move(group), StepRunner::Options{.step_tokens = options.step_tokens,
                                            .max_batch = kMaxBatch,
                                            .history = StepRunner::History::kRandom});
  bench->SampleAs(options.sampling);
  return bench;
}

void Bench::SampleAs(Sampling sampling) {
  sampling_ = sampling;
  if (sampling == Sampling::kLogits) return runner_->SampleAs(std::nullopt);
  if (sampling == Sampling::kGreedy) return runner_->SampleAs(worker::RowSampling());
  runner_->SampleAs(worker::RowSampling{
      .draw = uint64_t{1} << 63, .inverse_temperature = 1, .top_p = 0.95F, .logprobs = 0});
}

Json Bench::Ready() const {
  const worker::RankGroup& ranks = runner_->ranks();
  return {{"ready", ranks.backend_name()},
          {"shape", options_.shape},
          {"weights", options_.weights},
          {"kv_dtype", kvstore::DtypeName(options_.ranks.kv_dtype)},
          {"matrix_bytes", costs_->matrix_bytes},
          {"kv_token_bytes", costs_->token_bytes},
          {"resident_gib", static_cast<double>(ranks.resident_bytes()) / kGiB},
          {"load_seconds", load_seconds_}};
}

absl::StatusOr<std::vector<double>> Bench::Times(const Work& work) {
  if (work.kind == Kind::kDecode) {
    // In one go, so that the warm steps' tokens are there when the others are decoded.
    ASSIGN_OR_RETURN(auto times,
                     runner_->DecodeSteps(work.batch, work.depth, kWarmSteps + work.steps));
    times.erase(times.begin(), times.begin() + kWarmSteps);
    return times;
  }
  std::vector<double> times;
  for (int64_t i = 0; i <= work.steps; ++i) {
    const auto one = work.kind == Kind::kPrefill ? runner_->Prefill(work.rows, work.chunk)
                                                 : runner_->Extend(work.rows, work.depth);
    RETURN_IF_ERROR(one.status());
    if (i > 0) times.push_back(*one);
  }
  return times;
}

absl::StatusOr<Json> Bench::Measure(const Work& work) {
  ASSIGN_OR_RETURN(std::vector<double> times, Times(work));
  return Answer(work, std::move(times));
}

Json Bench::Answer(const Work& work, std::vector<double> times) const {
  std::ranges::sort(times);
  const double median = times[(times.size() - 1) / 2];
  const auto batch = static_cast<double>(work.batch), depth = static_cast<double>(work.depth),
             rows = static_cast<double>(work.rows);
  double tokens = rows, bytes = 0, flops = 0;
  if (work.kind == Kind::kDecode) {
    // The keys of the step in the middle.
    const double keys = depth + kWarmSteps + static_cast<double>(work.steps) / 2;
    tokens = batch;
    bytes = costs_->matrix_bytes + batch * keys * costs_->token_bytes;
    flops = batch * costs_->Flops(1, keys, 1);
  } else {
    const int64_t chunk = work.chunk > 0 ? work.chunk : options_.step_tokens;
    const int64_t steps = work.kind == Kind::kPrefill ? (work.rows + chunk - 1) / chunk : 1;
    bytes =
        costs_->matrix_bytes * static_cast<double>(steps) + (depth + rows) * costs_->token_bytes;
    flops = costs_->Flops(rows, work.kind == Kind::kExtend ? depth : 0, 1);
  }
  return {{"mode", kNames[static_cast<int>(work.kind)]},
          {"batch", work.batch},
          {"depth", work.depth},
          {"rows", work.rows},
          {"chunk", work.chunk},
          {"sampling", kSamplings[static_cast<int>(sampling_)]},
          {"steps", times.size()},
          {"median_ms", median * 1e3},
          {"min_ms", times.front() * 1e3},
          {"tokens_per_second", tokens / median},
          {"bytes_per_step", bytes},
          {"gb_per_second", bytes / median / 1e9},
          {"flops_per_step", flops},
          {"tflops", flops / median / 1e12}};
}

absl::StatusOr<Json> Bench::Restore(int64_t blocks, int64_t depth, int64_t steps) {
  ASSIGN_OR_RETURN(const RestoreRates rates,
                   MeasureRestore(*runner_, blocks, kRestoreBatch, depth, steps));
  return Json{{"mode", "restore"},
              {"blocks", blocks},
              {"batch", kRestoreBatch},
              {"depth", depth},
              {"to_device_gbps", rates.to_device / 1e9},
              {"to_host_gbps", rates.to_host / 1e9},
              {"during_gbps", rates.during / 1e9},
              {"alone_ms", rates.alone_seconds * 1e3},
              {"during_ms", rates.during_seconds * 1e3}};
}

// --- Commands and flags

template <class Enum, size_t kCount>
bool ParseName(absl::string_view name, const char* const (&names)[kCount], Enum& value) {
  for (size_t i = 0; i < kCount; ++i) {
    if (name != names[i]) continue;
    value = static_cast<Enum>(i);
    return true;
  }
  return false;
}

absl::StatusOr<Json> Execute(Bench& bench, const std::string& line) {
  const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  if (words.size() == 1 && words[0] == "forget") {
    bench.Forget();
    return Json::object({{"mode", "forget"}});
  }
  if (Sampling sampling{};
      words.size() == 2 && words[0] == "sampling" && ParseName(words[1], kSamplings, sampling)) {
    bench.SampleAs(sampling);
    return Json::object({{"mode", "sampling"}, {"sampling", words[1]}});
  }
  int64_t n[3] = {};
  bool good = words.size() == 4;
  for (size_t i = 0; good && i < 3; ++i) good = absl::SimpleAtoi(words[i + 1], &n[i]) && n[i] >= 0;
  if (good && n[0] > 0 && n[2] > 0) {
    if (words[0] == "decode") {
      return bench.Measure({.kind = Kind::kDecode, .batch = n[0], .depth = n[1], .steps = n[2]});
    }
    if (words[0] == "restore") return bench.Restore(n[0], n[1], n[2]);
    if (words[0] == "prefill") {
      return bench.Measure({.kind = Kind::kPrefill, .rows = n[0], .chunk = n[1], .steps = n[2]});
    }
    if (words[0] == "extend") {
      return bench.Measure({.kind = Kind::kExtend, .depth = n[1], .rows = n[0], .steps = n[2]});
    }
  }
  return absl::InvalidArgumentError("not understood: " + line);
}

void Print(const Json& json) {
  std::printf("%s\n", json.dump().c_str());
  std::fflush(stdout);
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const auto bench, Bench::Create(options));
  if (!options.serve) {
    ASSIGN_OR_RETURN(Json json, bench->Measure(options.work));
    Json all = bench->Ready();
    all.update(json);
    Print(all);
    return absl::OkStatus();
  }
  Print(bench->Ready());
  for (std::string line; std::getline(std::cin, line);) {
    const absl::StatusOr<Json> answer = Execute(*bench, line);
    Print(answer.ok() ? *answer : Json::object({{"error", answer.status().ToString()}}));
  }
  return absl::OkStatus();
}

bool ParseFlag(absl::string_view arg, Options& options) {
  if (arg == "--serve") return options.serve = true;
  if (absl::ConsumePrefix(&arg, "--mode=")) return ParseName(arg, kNames, options.work.kind);
  if (absl::ConsumePrefix(&arg, "--sampling=")) return ParseName(arg, kSamplings, options.sampling);
  const std::pair<absl::string_view, std::string&> texts[] = {{"--shape=", options.shape},
                                                              {"--weights=", options.weights}};
  for (const auto& [flag, value] : texts) {
    if (!absl::ConsumePrefix(&arg, flag)) continue;
    value = std::string(arg);
    return true;
  }
  struct Number {
    absl::string_view flag;
    int64_t& value;
    int64_t least;
  };
  const Number numbers[] = {
      {"--step-tokens=", options.step_tokens, 1}, {"--kv-tokens=", options.kv_tokens, 1},
      {"--batch=", options.work.batch, 1},        {"--depth=", options.work.depth, 0},
      {"--rows=", options.work.rows, 1},          {"--chunk=", options.work.chunk, 0},
      {"--steps=", options.work.steps, 1}};
  for (const Number& number : numbers) {
    if (!absl::ConsumePrefix(&arg, number.flag)) continue;
    return absl::SimpleAtoi(arg, &number.value) && number.value >= number.least;
  }
  return ParseRankFlag(arg, options.ranks);
}

int Main(int argc, char** argv) {
  Options options;
  options.ranks.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (int i = 1; i < argc; ++i) {
    if (!ParseFlag(argv[i], options)) {
      std::fprintf(stderr, "loopserve-gpu-step: bad flag %s\n", argv[i]);
      return 2;
    }
  }
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "loopserve-gpu-step: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace loopserve::bench

int main(int argc, char** argv) { return loopserve::bench::Main(argc, argv); }
