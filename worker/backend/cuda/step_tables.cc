#include "worker/backend/cuda/step_tables.h"

#include <algorithm>
#include <bit>

#include "common/status_macros.h"
#include "worker/backend/shape_check.h"

namespace loopserve::worker::cuda {
namespace {

// Tables start at 16-byte addresses, which vector loads need.
size_t Aligned(size_t words) { return (words + 3) / 4 * 4; }

}  // namespace

StepLayout LayoutOf(size_t rows, size_t logit_rows, size_t sequences, size_t plan_words) {
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
  const size_t sequences = inputs.sequences.size();
  if (inputs.positions.size() != rows) {
    return absl::InvalidArgumentError("shapes do not fit: a step's positions");
  }
  size_t blocks = 0;
  for (const AttentionSequence& sequence : inputs.sequences) {
    RETURN_IF_ERROR(CheckSequence(sequence, static_cast<int64_t>(rows), inputs.kv->shape));
    blocks += static_cast<size_t>(inputs.kv->shape.blocks_for(sequence.kv_tokens));
  }
  layout_ = LayoutOf(rows, inputs.logit_rows.size(), sequences, plan.size());
  words_.assign(layout_.blocks + Aligned(blocks), 0);
  Put(layout_.tokens, inputs.tokens);
  Put(layout_.positions, inputs.positions);
  Put(layout_.logit_rows, inputs.logit_rows);
  Put(layout_.plan, plan);
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
  return absl::OkStatus();
}

}  // namespace loopserve::worker::cuda
