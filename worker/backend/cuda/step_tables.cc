#include "worker/backend/cuda/step_tables.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/status_macros.h"
#include "worker/backend/shape_check.h"

namespace loopserve::worker::cuda {
namespace {

// Tables start at 16-byte addresses, which vector loads need.
size_t Aligned(size_t words) { return (words + 3) / 4 * 4; }

constexpr size_t kRowSamplingWords = sizeof(RowSampling) / sizeof(uint32_t);
constexpr size_t kAdjustmentWords = sizeof(TokenAdjustment) / sizeof(uint32_t);
static_assert(kAdjustmentWords == 4, "adjustments fill whole 16 bytes");

}  // namespace

StepLayout LayoutOf(size_t rows, size_t logit_rows, size_t sequences, size_t plan_words,
                    size_t sampled_rows) {
  StepLayout layout;
  size_t at = 0;
  const auto place = [&at](size_t& table, size_t words) {
    table = at;
    at += Aligned(words);
  };
  place(layout.tokens, rows);
  place(layout.positions, rows);
  place(layout.row_sequence, rows);
  place(layout.logit_rows, logit_rows);
  place(layout.first_row, sequences);
  place(layout.num_rows, sequences);
  place(layout.kv_tokens, sequences);
  place(layout.first_block, sequences + 1);
  place(layout.plan, plan_words);
  place(layout.sampling, sampled_rows * kRowSamplingWords);
  layout.blocks = at;
  return layout;
}

template <class T>
void StepTables::Put(size_t at, std::span<const T> values) {
  std::transform(values.begin(), values.end(), words_.begin() + static_cast<ptrdiff_t>(at),
                 [](T value) { return std::bit_cast<uint32_t>(value); });
}

absl::Status StepTables::Build(const StepInputs& inputs, std::span<const uint32_t> plan) {
  const size_t rows = inputs.tokens.size();
  if (inputs.positions.size() != rows) {
    return absl::InvalidArgumentError("shapes do not fit: a step's positions");
  }
  size_t blocks = 0;
  for (const AttentionSequence& sequence : inputs.sequences) {
    RETURN_IF_ERROR(CheckSequence(sequence, static_cast<int64_t>(rows), inputs.kv->shape));
    blocks += static_cast<size_t>(inputs.kv->shape.blocks_for(sequence.kv_tokens));
  }
  layout_ = LayoutOf(rows, inputs.logit_rows.size(), inputs.sequences.size(), plan.size(),
                     inputs.sampling.rows.size());
  const size_t adjustments_at = layout_.blocks + Aligned(blocks);
  words_.assign(adjustments_at + inputs.sampling.adjustments.size() * kAdjustmentWords, 0);
  Put(layout_.tokens, inputs.tokens);
  Put(layout_.positions, inputs.positions);
  Put(layout_.logit_rows, inputs.logit_rows);
  Put(layout_.plan, plan);
  PutBlocks(inputs);
  PutSampling(inputs.sampling, adjustments_at);
  return absl::OkStatus();
}

void StepTables::PutBlocks(const StepInputs& inputs) {
  const size_t sequences = inputs.sequences.size();
  size_t next = 0;
  for (size_t s = 0; s < sequences; ++s) {
    const AttentionSequence& sequence = inputs.sequences[s];
    words_[layout_.first_row + s] = static_cast<uint32_t>(sequence.first_row);
    words_[layout_.num_rows + s] = static_cast<uint32_t>(sequence.rows);
    words_[layout_.kv_tokens + s] = static_cast<uint32_t>(sequence.kv_tokens);
    words_[layout_.first_block + s] = static_cast<uint32_t>(next);
    const auto held = static_cast<size_t>(inputs.kv->shape.blocks_for(sequence.kv_tokens));
    for (size_t b = 0; b < held; ++b) {
      words_[layout_.blocks + next + b] = sequence.blocks[b].value();
    }
    next += held;
    std::fill_n(words_.begin() + static_cast<ptrdiff_t>(layout_.row_sequence) + sequence.first_row,
                sequence.rows, static_cast<uint32_t>(s));
  }
  words_[layout_.first_block + sequences] = static_cast<uint32_t>(next);
}

void StepTables::PutSampling(const SamplingView& sampling, size_t adjustments_at) {
  for (size_t r = 0; r < sampling.rows.size(); ++r) {
    RowSampling row = sampling.rows[r];
    row.first_adjustment += static_cast<uint32_t>(adjustments_at / kAdjustmentWords);
    std::memcpy(&words_[layout_.sampling + r * kRowSamplingWords], &row, sizeof(row));
  }
  if (sampling.adjustments.empty()) return;
  std::memcpy(&words_[adjustments_at], sampling.adjustments.data(),
              sampling.adjustments.size_bytes());
}

}  // namespace loopserve::worker::cuda
