// loopserve-engine-bench: times the engine's steps on command, so that another program can measure
// in turns with something else while both stay loaded.
//
//   loopserve-engine-bench --model=F [--backend=auto] [--isa=auto]
//                          [--activation-bits=16] [--threads=N] [--tp=N]
//                          [--kv-tokens=N: what the KV pool holds] [--kv-dtype=bf16|int8|fp8]
//
// It prints "ready BACKEND VOCAB CONTEXT" and then answers one line for each on standard input:
//
//   prefill TOKENS            -> seconds to compute that many tokens in steps of 512
//   extend TOKENS HISTORY     -> seconds to compute that many tokens behind a history whose KV is
//                                there already, in one step: a returning turn
//   decode BATCH DEPTH STEPS  -> seconds for STEPS tokens of each of BATCH sequences, each with
//                                DEPTH tokens of its own before
//   peak bf16|int8|f32        -> operations per second of all threads, out of registers; 0 for an
//                                arithmetic that the machine lacks
//   bandwidth MIB             -> bytes per second at which all threads read a buffer of that size
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "bench/machine_peaks.h"
#include "bench/step_runner.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/rank_group.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::bench {
namespace {

constexpr int64_t kSpareTokens = 4096;  // for what decoding appends

struct Options {
  std::string model;
  int64_t kv_tokens = 0;  // 0: room for a prefill of the whole context and kMaxBatch half as long
  worker::RankGroupOptions ranks;
};

absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(const worker::GgufFile& file,
                                                       Options options) {
  ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(file));
  const kvstore::KvShape shape =
      worker::KvShapeOf(config, options.ranks.kv_dtype, options.ranks.block_tokens);
  if (options.kv_tokens == 0) {
    options.kv_tokens = config.context_tokens +
                        StepRunner::kMaxBatch * (config.context_tokens / 2 + 1) + kSpareTokens;
  }
  options.ranks.kv_device_bytes = worker::BlockBytesOnRanks(shape, options.ranks.tp) *
                                  static_cast<uint64_t>(shape.blocks_for(options.kv_tokens));
  options.ranks.model = StepRunner::ModelSizes();
  ASSIGN_OR_RETURN(auto ranks,
                   worker::RankGroup::Create(file, options.ranks, common::Logger::Null()));
  return std::make_unique<StepRunner>(std::move(ranks));
}

absl::StatusOr<double> Peak(const std::string& arithmetic, int threads) {
  if (arithmetic == "bf16") return PeakOperations(Arithmetic::kBf16, threads);
  if (arithmetic == "int8") return PeakOperations(Arithmetic::kInt8, threads);
  if (arithmetic == "f32") return PeakOperations(Arithmetic::kF32, threads);
  return absl::InvalidArgumentError("peak of bf16, int8 or f32?");
}

absl::StatusOr<double> Answer(StepRunner& runner, int threads, const std::string& line) {
  const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  if (words.size() == 2 && words[0] == "peak") return Peak(words[1], threads);
  std::vector<int64_t> n;
  for (size_t i = 1; i < words.size(); ++i) {
    if (!absl::SimpleAtoi(words[i], &n.emplace_back()) || n.back() < 0) n.clear();
  }
  if (n.size() == 1 && n[0] > 0) {
    if (words[0] == "prefill") return runner.Prefill(n[0]);
    if (words[0] == "bandwidth") return ReadBandwidth(n[0], threads);
  }
  if (n.size() == 2 && n[0] > 0 && words[0] == "extend") return runner.Extend(n[0], n[1]);
  if (n.size() == 3 && n[0] > 0 && n[2] > 0 && words[0] == "decode") {
    return runner.Decode(n[0], n[1], n[2]);
  }
  return absl::InvalidArgumentError("not understood: " + line);
}

bool ParseFlag(absl::string_view arg, Options& options) {
  if (absl::ConsumePrefix(&arg, "--model=")) {
    options.model = std::string(arg);
  } else if (absl::ConsumePrefix(&arg, "--kv-tokens=")) {
    return absl::SimpleAtoi(arg, &options.kv_tokens) && options.kv_tokens > 0;
  } else if (absl::ConsumePrefix(&arg, "--tp=")) {
    return absl::SimpleAtoi(arg, &options.ranks.tp) && options.ranks.tp > 0;
  } else {
    return ParseRankFlag(arg, options.ranks);
  }
  return true;
}

absl::Status Serve(Options options) {
  const int threads = options.ranks.threads;
  ASSIGN_OR_RETURN(const auto file, worker::GgufFile::Open(options.model));
  ASSIGN_OR_RETURN(const auto runner, MakeRunner(*file, std::move(options)));
  absl::PrintF("ready %s %d %d\n", runner->ranks().backend_name(), runner->ranks().config().vocab,
               runner->ranks().config().context_tokens);
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    ASSIGN_OR_RETURN(const double value, Answer(*runner, threads, line));
    absl::PrintF("%.9g\n", value);
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  options.ranks.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (int i = 1; i < argc; ++i) {
    if (!ParseFlag(argv[i], options)) {
      std::fprintf(stderr, "loopserve-engine-bench: bad flag %s\n", argv[i]);
      return 2;
    }
  }
  if (options.model.empty()) {
    std::fprintf(stderr, "loopserve-engine-bench: --model is needed\n");
    return 2;
  }
  const absl::Status status = Serve(std::move(options));
  if (status.ok()) return 0;
  std::fprintf(stderr, "loopserve-engine-bench: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace loopserve::bench

int main(int argc, char** argv) { return loopserve::bench::Main(argc, argv); }
