// Sequences and tables for the tests of the prefill plan.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/backend/cuda/flashinfer/flash_plan.h"

namespace loopserve::worker::cuda {

struct PlannedStep {
  std::vector<std::vector<common::BlockId>> blocks;
  std::vector<AttentionSequence> sequences;
  std::vector<uint32_t> words;
  FlashPrefillPlan plan;

  int32_t at(size_t table, size_t index) const {
    return static_cast<int32_t>(words[table + index]);
  }
};

struct Lengths {
  int64_t rows, kv_tokens;
};

// Sequences whose rows follow each other from row `first_row` on, `gap` rows apart.
inline PlannedStep StepOf(const std::vector<Lengths>& lengths, int32_t block_tokens,
                          int64_t first_row = 0, int64_t gap = 0) {
  PlannedStep step;
  uint32_t next = 7;
  for (const Lengths& l : lengths) {
    std::vector<common::BlockId>& blocks = step.blocks.emplace_back();
    for (int64_t t = 0; t < l.kv_tokens; t += block_tokens) blocks.emplace_back(next += 3);
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    AttentionSequence& s = step.sequences.emplace_back();
    s.first_row = first_row;
    s.rows = lengths[i].rows;
    s.kv_tokens = lengths[i].kv_tokens;
    s.blocks = step.blocks[i];
    first_row += s.rows + gap;
  }
  return step;
}

constexpr FlashPrefillDevice kHopper = {90, 132};
constexpr FlashPrefillDevice kAmpere = {80, 108};

}  // namespace loopserve::worker::cuda
