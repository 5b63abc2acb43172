#include "worker/model/step_check.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/backend/row_sampler.h"

namespace loopserve::worker {
namespace {

absl::Status CheckSequence(const AttentionSequence& sequence, std::span<const int32_t> positions,
                           const kvstore::KvArena& kv) {
  if (kv.shape.blocks_for(sequence.kv_tokens) > static_cast<int64_t>(sequence.blocks.size())) {
    return absl::InvalidArgumentError("a sequence has fewer blocks than its tokens need");
  }
  for (const common::BlockId block : sequence.blocks) {
    if (block.value() >= kv.num_blocks) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", block.value(), " of a sequence is not in the arena"));
    }
  }
  int64_t position = sequence.kv_tokens - sequence.rows;
  for (const int32_t stated : positions) {
    if (stated != position++) {
      return absl::InvalidArgumentError(
          absl::StrCat("position ", stated, " is not that of its row in the sequence"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPlans(const AttentionSequence& sequence, size_t q_heads, size_t kv_heads) {
  if ((sequence.lines != nullptr && sequence.lines->heads.size() != q_heads) ||
      (sequence.working_set != nullptr && sequence.working_set->keys.size() != kv_heads)) {
    return absl::InvalidArgumentError("a sequence's plan is not for this shard's heads");
  }
  return absl::OkStatus();
}

absl::Status CheckSequences(const StepBatch& batch, const kvstore::KvArena& kv, size_t q_heads) {
  constexpr absl::string_view kCover = "the sequences of a step must cover its rows in order";
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  const auto kv_heads = static_cast<size_t>(kv.shape.kv_heads);
  int64_t next_row = 0;
  for (const AttentionSequence& sequence : batch.sequences) {
    if (sequence.first_row != next_row || sequence.rows < 1 || sequence.rows > rows - next_row ||
        sequence.kv_tokens < sequence.rows) {
      return absl::InvalidArgumentError(kCover);
    }
    RETURN_IF_ERROR(CheckSequence(
        sequence,
        batch.positions.subspan(static_cast<size_t>(next_row), static_cast<size_t>(sequence.rows)),
        kv));
    RETURN_IF_ERROR(CheckPlans(sequence, q_heads, kv_heads));
    next_row += sequence.rows;
  }
  return next_row == rows ? absl::OkStatus() : absl::InvalidArgumentError(kCover);
}

absl::Status CheckTokens(const StepBatch& batch, int32_t vocab, int64_t limit) {
  for (const common::TokenId token : batch.tokens) {
    if (token < 0 || token >= vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", token, " is outside the vocabulary of ", vocab));
    }
  }
  for (const int32_t position : batch.positions) {
    if (position < 0 || position >= limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("position ", position, " is not below ", limit));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogitRows(std::span<const int32_t> logit_rows, int64_t rows) {
  int32_t last = -1;
  for (const int32_t row : logit_rows) {
    if (row <= last || row >= rows) {
      return absl::InvalidArgumentError("logit rows must ascend and lie in the step");
    }
    last = row;
  }
  return absl::OkStatus();
}

}  // namespace

int64_t PositionsOf(const ModelConfig& config, const ModelOptions& options) {
  return options.max_positions > 0 ? options.max_positions : config.context_tokens;
}

absl::Status CheckStep(const StepBatch& batch, const kvstore::KvArena& kv, const Communicator& comm,
                       const ModelConfig& config, const ShardSpec& shard,
                       const ModelOptions& options) {
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  if (comm.size() != shard.size || comm.rank() != shard.rank) {
    return absl::InvalidArgumentError("the communicator is not that of the model's shard");
  }
  if (rows < 1 || rows > options.max_step_tokens ||
      static_cast<int64_t>(batch.logit_rows.size()) > options.max_logit_rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a step of ", rows, " tokens and ", batch.logit_rows.size(), " logit rows exceeds ",
        options.max_step_tokens, " and ", options.max_logit_rows));
  }
  if (batch.positions.size() != batch.tokens.size()) {
    return absl::InvalidArgumentError("a step needs one position per token");
  }
  RETURN_IF_ERROR(CheckTokens(batch, config.vocab, PositionsOf(config, options)));
  RETURN_IF_ERROR(CheckLogitRows(batch.logit_rows, rows));
  if (!batch.sampling.empty() && batch.sampling.rows.size() != batch.logit_rows.size()) {
    return absl::InvalidArgumentError("a step samples either all of its logit rows or none");
  }
  RETURN_IF_ERROR(CheckSampling(batch.sampling, config.vocab));
  if (kv.shape.layers != config.layers || kv.shape.head_dim != config.head_dim ||
      kv.shape.kv_heads != KvHeadsOf(config.kv_heads, shard).size()) {
    return absl::InvalidArgumentError("the KV arena is not of this shard's shape");
  }
  const RowRange q_heads = QueryHeadsOf(config.q_heads, config.kv_heads, shard);
  return CheckSequences(batch, kv, static_cast<size_t>(q_heads.size()));
}

}  // namespace loopserve::worker
