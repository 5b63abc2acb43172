// StepRunner: builds steps of the three kinds that a server runs (a prefill, a returning turn's
// new tokens, decoding) and times them on the ranks it is given.
//
//   ranks.model = StepRunner::ModelSizes();
//   StepRunner runner(*RankGroup::Create(file, ranks, log));
//   runner.Prefill(512);  // seconds
//
// Histories are computed once and kept, by depth; or, where only time counts, filled with random KV
// at once. Errors: InvalidArgument for a step that is too large, ResourceExhausted when the KV pool
// is.
//
// Thread rule: one caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "worker/backend/sampling.h"
#include "worker/engine/rank_group.h"

namespace loopserve::bench {

class StepRunner final {
 public:
  static constexpr int64_t kStepTokens = 512;
  static constexpr int64_t kMaxBatch = 16;
  static worker::ModelOptions ModelSizes() {
    return {.max_step_tokens = kStepTokens, .max_logit_rows = kMaxBatch};
  }

  enum class History { kComputed, kRandom };
  struct Options {
    int64_t step_tokens = kStepTokens;  // rows of the largest step; the model must allow it
    int64_t max_batch = kMaxBatch;
    History history = History::kComputed;
  };

  explicit StepRunner(std::unique_ptr<worker::RankGroup> ranks) : ranks_(std::move(ranks)) {}
  StepRunner(std::unique_ptr<worker::RankGroup> ranks, Options options)
      : ranks_(std::move(ranks)), options_(options) {}

  // Seconds to compute that many tokens in steps of `chunk` (0: of the largest size), logits of the
  // last.
  absl::StatusOr<double> Prefill(int64_t tokens, int64_t chunk = 0);
  // Seconds to compute `tokens` behind a history of `depth` tokens, in one step.
  absl::StatusOr<double> Extend(int64_t tokens, int64_t depth);
  // Seconds for `steps` tokens of each of `batch` sequences, each behind `depth` of its own.
  absl::StatusOr<double> Decode(int64_t batch, int64_t depth, int64_t steps);
  // The same, step by step.
  absl::StatusOr<std::vector<double>> DecodeSteps(int64_t batch, int64_t depth, int64_t steps);

  // Has `batch` histories of `depth` tokens and room for `tokens` more behind each. Extend and
  // Decode do so themselves; before them, it keeps the history's own steps out of a profile.
  absl::Status Prepare(int64_t batch, int64_t depth, int64_t tokens);
  // Lets go of all histories and their blocks.
  void Forget() { sequences_.clear(); }

  // How steps choose tokens from now on, as a server's do; none, as at first: they give their
  // logits.
  void SampleAs(std::optional<worker::RowSampling> sampling) { sampling_ = sampling; }

  const worker::RankGroup& ranks() const { return *ranks_; }
  kvstore::KvBlockPool& pool() const { return ranks_->pool(); }

 private:
  // A text and the blocks that hold its KV.
  struct Sequence {
    std::vector<kvstore::BlockHandle> handles;
    std::vector<common::BlockId> blocks;
  };

  common::TokenId TokenAt(int64_t position) const;
  absl::Status Reserve(Sequence& sequence, int64_t tokens);
  void AddPart(const Sequence& sequence, int64_t begin, int64_t rows, worker::StepPlan& plan) const;
  // Adds the sampling of its logit rows.
  absl::StatusOr<double> Time(std::shared_ptr<worker::StepPlan> plan);
  absl::StatusOr<double> Compute(Sequence& sequence, int64_t tokens, int64_t chunk);
  absl::Status FillAtRandom(Sequence& sequence, int64_t tokens);

  std::unique_ptr<worker::RankGroup> ranks_;
  Options options_;
  std::optional<worker::RowSampling> sampling_;
  std::vector<std::vector<std::byte>> random_blocks_;   // what random histories consist of
  std::map<int64_t, std::vector<Sequence>> sequences_;  // by depth
};

// Takes --backend=, --isa=, --activation-bits=, --threads= or --kv-dtype= into the options; false
// for anything else.
bool ParseRankFlag(absl::string_view arg, worker::RankGroupOptions& options);

}  // namespace loopserve::bench
