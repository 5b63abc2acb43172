// ModelRunner: a model with its ranks, communicators and KV blocks, for tests and tools that want
// logits without an engine.
//
//   auto runner = ModelRunner::Create(*file, config, {.tp = 2});
//   auto logits = (*runner)->Append({{.sequence = 0, .tokens = prompt}}, {last_row});
//
// Thread rule: one caller. With several ranks each step runs on one thread per rank.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kvstore/block_pool.h"
#include "worker/backend/backend.h"
#include "worker/comm/communicator.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::testing {

class ModelRunner final {
 public:
  struct Options {
    std::string backend = "reference";
    std::string isa = "auto";
    int activation_bits = 16;
    int threads = 1;  // per rank
    int tp = 1;
    kvstore::KvDtype kv_dtype = kvstore::KvDtype::kF32;
    int64_t max_step_tokens = 512;
    int64_t max_positions = 0;  // of one sequence; 0: the model's context
    int sequences = 1;
    int32_t block_tokens = 16;
    std::optional<bool> shard_inputs;  // unset: as the backend prefers
  };

  // What one sequence adds in a step.
  struct Part {
    int sequence = 0;
    std::vector<common::TokenId> tokens;
  };

  // `file` must outlive the runner.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const worker::GgufFile& file,
                                                             const worker::ModelConfig& config,
                                                             const Options& options);

  // One step. Logits [rows, vocab] of the given rows of the step; Internal if two ranks return
  // different bits.
  absl::StatusOr<std::vector<float>> Append(std::span<const Part> parts,
                                            std::span<const int32_t> logit_rows);
  // One step, and what the first rank chooses from these logits. Internal if another one does, or
  // if the logits come, too.
  absl::StatusOr<std::vector<worker::RowChoice>> Choose(std::span<const Part> parts,
                                                        std::span<const int32_t> logit_rows,
                                                        const worker::SamplingView& sampling);
  // Steps of at most `chunk` tokens. Logits of every token.
  absl::StatusOr<std::vector<float>> AppendAll(int sequence,
                                               std::span<const common::TokenId> tokens,
                                               int64_t chunk);
  // Forgets what the sequence holds.
  void Clear(int sequence) { lengths_[static_cast<size_t>(sequence)] = 0; }

  worker::Model& model(int rank = 0) { return *ranks_[static_cast<size_t>(rank)].model; }
  worker::Backend& backend() { return *ranks_[0].backend; }
  kvstore::KvBlockPool& pool() { return *pool_; }
  // The blocks of a sequence, in order.
  const std::vector<common::BlockId>& blocks(int sequence) const {
    return blocks_[static_cast<size_t>(sequence)];
  }

 private:
  struct Rank {
    std::unique_ptr<worker::Communicator> comm;  // outlives the backend, which may have recorded it
    std::unique_ptr<worker::Backend> backend;
    std::unique_ptr<worker::Model> model;
  };

  ModelRunner() = default;
  absl::Status LoadRanks(const worker::GgufFile& file, const worker::ModelConfig& config,
                         const Options& options);
  absl::Status MakePool(const worker::ModelConfig& config, const Options& options);
  absl::StatusOr<std::vector<worker::StepOutput>> Step(std::span<const Part> parts,
                                                       std::span<const int32_t> logit_rows,
                                                       const worker::SamplingView& sampling);
  // By rank, valid until the next step.
  absl::StatusOr<std::vector<worker::StepOutput>> RunRanks(const worker::StepBatch& batch);

  std::vector<Rank> ranks_;
  std::unique_ptr<kvstore::KvBlockPool> pool_;
  std::vector<kvstore::BlockHandle> handles_;
  std::vector<std::vector<common::BlockId>> blocks_;  // [sequence]
  std::vector<int64_t> lengths_;                      // [sequence], tokens
};

}  // namespace loopserve::testing
