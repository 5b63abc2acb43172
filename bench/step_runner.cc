#include "bench/step_runner.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "bench/random_fill.h"
#include "common/status_macros.h"

namespace loopserve::bench {

using common::TokenId;
using worker::StepPlan;

namespace {
constexpr size_t kRandomBlocks = 16;  // different ones in a random history
}  // namespace

absl::StatusOr<double> StepRunner::Prefill(int64_t tokens, int64_t chunk) {
  if (chunk == 0) chunk = options_.step_tokens;
  if (chunk > options_.step_tokens) return absl::InvalidArgumentError("the chunk is too large");
  Sequence sequence;
  return Compute(sequence, tokens, chunk);
}

absl::StatusOr<double> StepRunner::Extend(int64_t tokens, int64_t depth) {
  if (tokens > options_.step_tokens)
    return absl::InvalidArgumentError("that is more than one step");
  RETURN_IF_ERROR(Prepare(1, depth, tokens));
  auto plan = std::make_shared<StepPlan>();
  AddPart(sequences_[depth][0], depth, tokens, *plan);
  plan->logit_rows = {static_cast<int32_t>(tokens - 1)};
  return Time(std::move(plan));
}

absl::StatusOr<double> StepRunner::Decode(int64_t batch, int64_t depth, int64_t steps) {
  ASSIGN_OR_RETURN(const std::vector<double> times, DecodeSteps(batch, depth, steps));
  return std::accumulate(times.begin(), times.end(), 0.0);
}

absl::StatusOr<std::vector<double>> StepRunner::DecodeSteps(int64_t batch, int64_t depth,
                                                            int64_t steps) {
  if (batch > options_.max_batch) return absl::InvalidArgumentError("the batch is too large");
  RETURN_IF_ERROR(Prepare(batch, depth, steps));
  std::vector<Sequence>& sequences = sequences_[depth];
  std::vector<double> times;
  for (int64_t i = 0; i < steps; ++i) {
    auto plan = std::make_shared<StepPlan>();
    for (int64_t s = 0; s < batch; ++s) {
      AddPart(sequences[static_cast<size_t>(s)], depth + i, 1, *plan);
      plan->logit_rows.push_back(static_cast<int32_t>(s));
    }
    ASSIGN_OR_RETURN(const double step, Time(std::move(plan)));
    times.push_back(step);
  }
  return times;
}

// Sequences have bytes of their own, as different users' have. What is behind the history is
// written anew by every measurement.
absl::Status StepRunner::Prepare(int64_t batch, int64_t depth, int64_t tokens) {
  std::vector<Sequence>& sequences = sequences_[depth];
  for (auto s = static_cast<int64_t>(sequences.size()); s < batch; ++s) {
    Sequence sequence;
    if (options_.history == History::kRandom) {
      RETURN_IF_ERROR(FillAtRandom(sequence, depth));
    } else if (s == 0) {
      RETURN_IF_ERROR(Compute(sequence, depth, options_.step_tokens).status());
    } else {
      RETURN_IF_ERROR(Reserve(sequence, depth));
      for (size_t b = 0; b < sequence.blocks.size(); ++b) {
        RETURN_IF_ERROR(ranks_->pool().CopyBlock(sequences[0].blocks[b], sequence.blocks[b]));
      }
    }
    sequences.push_back(std::move(sequence));
  }
  for (Sequence& sequence : sequences) RETURN_IF_ERROR(Reserve(sequence, depth + tokens));
  return absl::OkStatus();
}

// Any tokens do: the work does not depend on them.
TokenId StepRunner::TokenAt(int64_t position) const {
  return static_cast<TokenId>((position * 7919 + 13) % ranks_->config().vocab);
}

absl::Status StepRunner::Reserve(Sequence& sequence, int64_t tokens) {
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
void StepRunner::AddPart(const Sequence& sequence, int64_t begin, int64_t rows,
                         StepPlan& plan) const {
  plan.parts.push_back({.rows = rows, .kv_tokens = begin + rows, .blocks = sequence.blocks});
  for (int64_t i = 0; i < rows; ++i) {
    plan.tokens.push_back(TokenAt(begin + i));
    plan.positions.push_back(static_cast<int32_t>(begin + i));
  }
}

absl::StatusOr<double> StepRunner::Time(std::shared_ptr<StepPlan> plan) {
  if (sampling_) plan->sampling.rows.assign(plan->logit_rows.size(), *sampling_);
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(ranks_->Run(std::move(plan)).status());
  return absl::ToDoubleSeconds(absl::Now() - start);
}

// Computes the sequence's first `tokens` tokens; returns the time of the steps.
absl::StatusOr<double> StepRunner::Compute(Sequence& sequence, int64_t tokens, int64_t chunk) {
  RETURN_IF_ERROR(Reserve(sequence, tokens));
  double seconds = 0;
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t rows = std::min(chunk, tokens - begin);
    auto plan = std::make_shared<StepPlan>();
    AddPart(sequence, begin, rows, *plan);
    if (begin + rows == tokens) plan->logit_rows = {static_cast<int32_t>(rows - 1)};
    ASSIGN_OR_RETURN(const double step, Time(std::move(plan)));
    seconds += step;
  }
  return seconds;
}

// The same few random blocks again and again, in memory of their own.
absl::Status StepRunner::FillAtRandom(Sequence& sequence, int64_t tokens) {
  RETURN_IF_ERROR(Reserve(sequence, tokens));
  kvstore::KvBlockPool& pool = ranks_->pool();
  while (random_blocks_.size() < std::min(kRandomBlocks, sequence.blocks.size())) {
    auto& block = random_blocks_.emplace_back(pool.shape().block_bytes());
    FillKvBlock(pool.shape(), random_blocks_.size(), block);
  }
  for (size_t b = 0; b < sequence.blocks.size(); ++b) {
    const auto& block = random_blocks_[b % random_blocks_.size()];
    RETURN_IF_ERROR(pool.WriteBlock(sequence.blocks[b], block));
  }
  return absl::OkStatus();
}

bool ParseRankFlag(absl::string_view arg, worker::RankGroupOptions& options) {
  if (absl::ConsumePrefix(&arg, "--backend=")) {
    options.backend = std::string(arg);
  } else if (absl::ConsumePrefix(&arg, "--isa=")) {
    options.isa = std::string(arg);
  } else if (absl::ConsumePrefix(&arg, "--activation-bits=")) {
    return absl::SimpleAtoi(arg, &options.activation_bits) &&
           (options.activation_bits == 16 || options.activation_bits == 8);
  } else if (absl::ConsumePrefix(&arg, "--kv-dtype=")) {
    const auto dtype = kvstore::DtypeFromName(arg);
    options.kv_dtype = dtype.value_or(options.kv_dtype);
    return dtype.has_value() && *dtype != kvstore::KvDtype::kF32;
  } else if (absl::ConsumePrefix(&arg, "--threads=")) {
    return absl::SimpleAtoi(arg, &options.threads) && options.threads > 0;
  } else {
    return false;
  }
  return true;
}

}  // namespace loopserve::bench
