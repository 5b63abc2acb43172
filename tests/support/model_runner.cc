#include "tests/support/model_runner.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::testing {
namespace {

std::vector<float> Copy(const worker::TensorView& view) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(view.rows * view.cols));
  for (int64_t r = 0; r < view.rows; ++r) {
    values.insert(values.end(), view.row(r), view.row(r) + view.cols);
  }
  return values;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const worker::GgufFile& file,
                                                                 const worker::ModelConfig& config,
                                                                 const Options& options) {
  std::unique_ptr<ModelRunner> runner(new ModelRunner());
  RETURN_IF_ERROR(runner->LoadRanks(file, config, options));
  RETURN_IF_ERROR(runner->MakePool(config, options));
  return runner;
}

absl::Status ModelRunner::LoadRanks(const worker::GgufFile& file, const worker::ModelConfig& config,
                                    const Options& options) {
  std::vector<worker::Backend*> backends;
  for (int r = 0; r < options.tp; ++r) {
    Rank rank;
    ASSIGN_OR_RETURN(rank.backend,
                     worker::CreateBackend({.name = options.backend,
                                            .device = r,
                                            .threads = options.threads,
                                            .isa = options.isa,
                                            .activation_bits = options.activation_bits}));
    ASSIGN_OR_RETURN(rank.model,
                     worker::LoadModel(file, config, {.rank = r, .size = options.tp}, *rank.backend,
                                       {.max_step_tokens = options.max_step_tokens,
                                        .max_logit_rows = options.max_step_tokens,
                                        .max_positions = options.max_positions,
                                        .shard_inputs = options.shard_inputs}));
    backends.push_back(rank.backend.get());
    ranks_.push_back(std::move(rank));
  }
  ASSIGN_OR_RETURN(auto comms, backends[0]->ConnectRanks(backends, absl::Minutes(10), nullptr));
  for (size_t r = 0; r < comms.size(); ++r) ranks_[r].comm = std::move(comms[r]);
  return absl::OkStatus();
}

absl::Status ModelRunner::MakePool(const worker::ModelConfig& config, const Options& options) {
  const kvstore::KvShape shape = worker::KvShapeOf(config, options.kv_dtype, options.block_tokens);
  std::vector<kvstore::KvBlockPool::Shard> shards;
  for (int r = 0; r < options.tp; ++r) {
    const worker::RowRange heads =
        worker::KvHeadsOf(config.kv_heads, {.rank = r, .size = options.tp});
    shards.push_back({.memory = &ranks_[static_cast<size_t>(r)].backend->memory(),
                      .first_kv_head = static_cast<int32_t>(heads.begin),
                      .kv_heads = static_cast<int32_t>(heads.size())});
  }
  const int64_t positions =
      options.max_positions > 0 ? options.max_positions : config.context_tokens;
  const int64_t per_sequence = shape.blocks_for(positions);
  lengths_.assign(static_cast<size_t>(options.sequences), 0);
  blocks_.resize(lengths_.size());
  ASSIGN_OR_RETURN(pool_, kvstore::KvBlockPool::Create(
                              shape, static_cast<uint32_t>(per_sequence * options.sequences),
                              std::move(shards)));
  // In turns, so that a sequence's blocks are not neighbours.
  for (int64_t i = 0; i < per_sequence; ++i) {
    for (auto& blocks : blocks_) {
      auto handle = pool_->Allocate();
      if (!handle.has_value()) return absl::ResourceExhaustedError("no KV block is free");
      blocks.push_back(handle->id());
      handles_.push_back(*std::move(handle));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<worker::StepOutput>> ModelRunner::Step(
    std::span<const Part> parts, std::span<const int32_t> logit_rows,
    const worker::SamplingView& sampling) {
  std::vector<common::TokenId> tokens;
  std::vector<int32_t> positions;
  std::vector<worker::AttentionSequence> sequences;
  for (const Part& part : parts) {
    const auto index = static_cast<size_t>(part.sequence);
    const auto rows = static_cast<int64_t>(part.tokens.size());
    sequences.push_back({.first_row = static_cast<int64_t>(tokens.size()),
                         .rows = rows,
                         .kv_tokens = lengths_[index] + rows,
                         .blocks = blocks_[index]});
    for (int64_t i = 0; i < rows; ++i) {
      positions.push_back(static_cast<int32_t>(lengths_[index] + i));
    }
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
  }
  ASSIGN_OR_RETURN(std::vector<worker::StepOutput> outputs, RunRanks({.tokens = tokens,
                                                                      .positions = positions,
                                                                      .sequences = sequences,
                                                                      .logit_rows = logit_rows,
                                                                      .sampling = sampling}));
  for (const Part& part : parts) {
    lengths_[static_cast<size_t>(part.sequence)] += static_cast<int64_t>(part.tokens.size());
  }
  return outputs;
}

absl::StatusOr<std::vector<float>> ModelRunner::Append(std::span<const Part> parts,
                                                       std::span<const int32_t> logit_rows) {
  ASSIGN_OR_RETURN(const std::vector<worker::StepOutput> outputs, Step(parts, logit_rows, {}));
  std::vector<float> logits = Copy(outputs[0].logits);
  for (const worker::StepOutput& output : outputs) {
    if (!SameBits(Copy(output.logits), logits)) return absl::InternalError("two ranks disagree");
  }
  return logits;
}

absl::StatusOr<std::vector<worker::RowChoice>> ModelRunner::Choose(
    std::span<const Part> parts, std::span<const int32_t> logit_rows,
    const worker::SamplingView& sampling) {
  ASSIGN_OR_RETURN(const std::vector<worker::StepOutput> outputs,
                   Step(parts, logit_rows, sampling));
  for (const worker::StepOutput& output : outputs) {
    if (output.logits.data != nullptr) return absl::InternalError("there are logits, too");
    if (&output != outputs.data() && !output.choices.empty()) {
      return absl::InternalError("another rank chooses, too");
    }
  }
  return std::vector<worker::RowChoice>(outputs[0].choices.begin(), outputs[0].choices.end());
}

absl::StatusOr<std::vector<worker::StepOutput>> ModelRunner::RunRanks(
    const worker::StepBatch& batch) {
  std::vector<absl::StatusOr<worker::StepOutput>> results(ranks_.size());
  const auto run = [&](size_t r) {
    results[r] =
        ranks_[r].model->Forward(batch, pool_->arena(static_cast<int>(r)), *ranks_[r].comm);
    if (!results[r].ok()) ranks_[r].comm->Abort(results[r].status());
  };
  std::vector<std::thread> threads;
  for (size_t r = 1; r < ranks_.size(); ++r) threads.emplace_back(run, r);
  run(0);
  for (std::thread& thread : threads) thread.join();
  std::vector<worker::StepOutput> outputs;
  for (const auto& result : results) {
    RETURN_IF_ERROR(result.status());
    outputs.push_back(*result);
  }
  return outputs;
}

absl::StatusOr<std::vector<float>> ModelRunner::AppendAll(int sequence,
                                                          std::span<const common::TokenId> tokens,
                                                          int64_t chunk) {
  std::vector<float> all;
  for (size_t done = 0; done < tokens.size();) {
    const size_t rows = std::min(tokens.size() - done, static_cast<size_t>(chunk));
    const auto next = tokens.subspan(done, rows);
    const Part part{sequence, {next.begin(), next.end()}};
    std::vector<int32_t> logit_rows(rows);
    for (size_t i = 0; i < rows; ++i) logit_rows[i] = static_cast<int32_t>(i);
    ASSIGN_OR_RETURN(const std::vector<float> logits, Append({&part, 1}, logit_rows));
    all.insert(all.end(), logits.begin(), logits.end());
    done += rows;
  }
  return all;
}

}  // namespace loopserve::testing
