// loopserve-engine-bench: times the engine's steps on command, so that another program can measure
// in turns with something else while both stay loaded.
//
//   loopserve-engine-bench --model=F [--backend=auto] [--isa=auto] [--threads=N] [--tp=N]
//                          [--kv-tokens=N: what the KV pool holds]
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
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "bench/machine_peaks.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/rank_group.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::bench {
namespace {

using common::BlockId;
using common::TokenId;
using worker::StepPlan;

constexpr int64_t kStepTokens = 512;
constexpr int64_t kMaxBatch = 16;
constexpr int64_t kSpareTokens = 4096;  // for what decoding appends

struct Options {
  std::string model;
  int64_t kv_tokens = 0;  // 0: room for a prefill of the whole context and kMaxBatch half as long
  worker::RankGroupOptions ranks;
};

// A text and the blocks that hold its KV.
struct Sequence {
  std::vector<kvstore::BlockHandle> handles;
  std::vector<BlockId> blocks;
};

class Runner final {
 public:
  static absl::StatusOr<std::unique_ptr<Runner>> Create(Options options) {
    std::unique_ptr<Runner> runner(new Runner());
    ASSIGN_OR_RETURN(runner->file_, worker::GgufFile::Open(options.model));
    ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(*runner->file_));
    const kvstore::KvShape shape =
        worker::KvShapeOf(config, options.ranks.kv_dtype, options.ranks.block_tokens);
    if (options.kv_tokens == 0) {
      options.kv_tokens =
          config.context_tokens + kMaxBatch * (config.context_tokens / 2 + 1) + kSpareTokens;
    }
    options.ranks.kv_device_bytes = shape.token_bytes() * static_cast<uint64_t>(options.kv_tokens);
    options.ranks.model = {.max_step_tokens = kStepTokens, .max_logit_rows = kMaxBatch};
    ASSIGN_OR_RETURN(runner->ranks_, worker::RankGroup::Create(*runner->file_, options.ranks,
                                                               common::Logger::Null()));
    return runner;
  }

  absl::StatusOr<double> Prefill(int64_t tokens) {
    Sequence sequence;
    return Fill(sequence, tokens);
  }

  absl::StatusOr<double> Extend(int64_t tokens, int64_t history) {
    if (tokens > kStepTokens) return absl::InvalidArgumentError("that is more than one step");
    RETURN_IF_ERROR(Prepare(1, history, tokens));
    auto plan = std::make_shared<StepPlan>();
    AddPart(sequences_[history][0], history, tokens, *plan);
    plan->logit_rows = {static_cast<int32_t>(tokens - 1)};
    return Time(std::move(plan));
  }

  absl::StatusOr<double> Decode(int64_t batch, int64_t depth, int64_t steps) {
    if (batch > kMaxBatch) return absl::InvalidArgumentError("the batch is too large");
    RETURN_IF_ERROR(Prepare(batch, depth, steps));
    std::vector<Sequence>& sequences = sequences_[depth];
    double seconds = 0;
    for (int64_t i = 0; i < steps; ++i) {
      auto plan = std::make_shared<StepPlan>();
      for (int64_t s = 0; s < batch; ++s) {
        AddPart(sequences[static_cast<size_t>(s)], depth + i, 1, *plan);
        plan->logit_rows.push_back(static_cast<int32_t>(s));
      }
      ASSIGN_OR_RETURN(const double step, Time(std::move(plan)));
      seconds += step;
    }
    return seconds;
  }

  const worker::RankGroup& ranks() const { return *ranks_; }

 private:
  Runner() = default;

  // Any tokens do: the work does not depend on them.
  TokenId TokenAt(int64_t position) const {
    return static_cast<TokenId>((position * 7919 + 13) % ranks_->config().vocab);
  }

  absl::Status Reserve(Sequence& sequence, int64_t tokens) {
    const int64_t wanted = ranks_->pool().shape().blocks_for(tokens);
    while (static_cast<int64_t>(sequence.blocks.size()) < wanted) {
      auto handle = ranks_->pool().Allocate();
      if (!handle.has_value()) return absl::ResourceExhaustedError("no KV block is free");
      sequence.blocks.push_back(handle->id());
      sequence.handles.push_back(*std::move(handle));
    }
    return absl::OkStatus();
  }

  // Rows at positions [begin, begin + rows).
  void AddPart(const Sequence& sequence, int64_t begin, int64_t rows, StepPlan& plan) const {
    plan.parts.push_back({.rows = rows, .kv_tokens = begin + rows, .blocks = sequence.blocks});
    for (int64_t i = 0; i < rows; ++i) {
      plan.tokens.push_back(TokenAt(begin + i));
      plan.positions.push_back(static_cast<int32_t>(begin + i));
    }
  }

  absl::StatusOr<double> Time(std::shared_ptr<const StepPlan> plan) {
    const absl::Time start = absl::Now();
    RETURN_IF_ERROR(ranks_->Run(std::move(plan)).status());
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

  // Computes the sequence's first `tokens` tokens; returns the time of the steps.
  absl::StatusOr<double> Fill(Sequence& sequence, int64_t tokens) {
    RETURN_IF_ERROR(Reserve(sequence, tokens));
    double seconds = 0;
    for (int64_t begin = 0; begin < tokens; begin += kStepTokens) {
      const int64_t rows = std::min(kStepTokens, tokens - begin);
      auto plan = std::make_shared<StepPlan>();
      AddPart(sequence, begin, rows, *plan);
      if (begin + rows == tokens) plan->logit_rows = {static_cast<int32_t>(rows - 1)};
      ASSIGN_OR_RETURN(const double step, Time(std::move(plan)));
      seconds += step;
    }
    return seconds;
  }

  // Sequences of `depth` tokens with bytes of their own, as different users have them, and room for
  // `steps` more: those are written anew by every measurement.
  absl::Status Prepare(int64_t batch, int64_t depth, int64_t steps) {
    std::vector<Sequence>& sequences = sequences_[depth];
    for (auto s = static_cast<int64_t>(sequences.size()); s < batch; ++s) {
      Sequence sequence;
      if (s == 0) {
        RETURN_IF_ERROR(Fill(sequence, depth).status());
      } else {
        RETURN_IF_ERROR(Reserve(sequence, depth));
        for (size_t b = 0; b < sequence.blocks.size(); ++b) {
          RETURN_IF_ERROR(ranks_->pool().CopyBlock(sequences[0].blocks[b], sequence.blocks[b]));
        }
      }
      sequences.push_back(std::move(sequence));
    }
    for (Sequence& sequence : sequences) RETURN_IF_ERROR(Reserve(sequence, depth + steps));
    return absl::OkStatus();
  }

  std::unique_ptr<worker::GgufFile> file_;
  std::unique_ptr<worker::RankGroup> ranks_;
  std::map<int64_t, std::vector<Sequence>> sequences_;  // by depth
};

absl::StatusOr<double> Peak(const std::string& arithmetic, int threads) {
  if (arithmetic == "bf16") return PeakOperations(Arithmetic::kBf16, threads);
  if (arithmetic == "int8") return PeakOperations(Arithmetic::kInt8, threads);
  if (arithmetic == "f32") return PeakOperations(Arithmetic::kF32, threads);
  return absl::InvalidArgumentError("peak of bf16, int8 or f32?");
}

absl::StatusOr<double> Answer(Runner& runner, int threads, const std::string& line) {
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
  } else if (absl::ConsumePrefix(&arg, "--backend=")) {
    options.ranks.backend = std::string(arg);
  } else if (absl::ConsumePrefix(&arg, "--isa=")) {
    options.ranks.isa = std::string(arg);
  } else if (absl::ConsumePrefix(&arg, "--threads=")) {
    return absl::SimpleAtoi(arg, &options.ranks.threads) && options.ranks.threads > 0;
  } else if (absl::ConsumePrefix(&arg, "--kv-tokens=")) {
    return absl::SimpleAtoi(arg, &options.kv_tokens) && options.kv_tokens > 0;
  } else if (absl::ConsumePrefix(&arg, "--tp=")) {
    return absl::SimpleAtoi(arg, &options.ranks.tp) && options.ranks.tp > 0;
  } else {
    return false;
  }
  return true;
}

absl::Status Serve(Options options) {
  const int threads = options.ranks.threads;
  ASSIGN_OR_RETURN(const auto runner, Runner::Create(std::move(options)));
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
