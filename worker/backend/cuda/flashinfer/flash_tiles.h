// The two tilings behind flash_plan.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "worker/backend/cuda/ceil_div.h"
#include "worker/backend/cuda/flashinfer/flash_plan.h"
#include "worker/backend/cuda/flashinfer/sm90_tile.h"

namespace loopserve::worker::cuda {

// Appends tables and says where they lie.
class TableWriter {
 public:
  explicit TableWriter(std::vector<uint32_t>& words) : words_(words) {}

  size_t Put(std::span<const int32_t> values) {
    const size_t at = words_.size();
    words_.insert(words_.end(), values.begin(), values.end());
    return at;
  }
  // The block ids of all sequences; answers where each one's begin, and the end.
  std::vector<int32_t> PutBlocks(std::span<const AttentionSequence> sequences, int32_t block_tokens,
                                 FlashPrefillPlan& plan) {
    plan.tables.blocks = words_.size();
    std::vector<int32_t> first = {0};
    for (const AttentionSequence& s : sequences) {
      const auto held = static_cast<size_t>(CeilDiv(s.kv_tokens, block_tokens));
      for (const common::BlockId block : s.blocks.first(held)) words_.push_back(block.value());
      first.push_back(first.back() + static_cast<int32_t>(held));
    }
    return first;
  }

 private:
  std::vector<uint32_t>& words_;
};

// The end of the keys that the rows before `end_row` of a sequence see.
inline int64_t VisibleKeys(const AttentionSequence& s, int64_t end_row) {
  return s.kv_tokens - s.rows + std::min(end_row, s.rows);
}

void PlanFa2(std::span<const AttentionSequence> sequences, std::span<const int32_t> first_block,
             TableWriter& writer, FlashPrefillPlan& plan);
void PlanSm90(std::span<const AttentionSequence> sequences, std::span<const int32_t> first_block,
              TableWriter& writer, FlashPrefillPlan& plan);

}  // namespace loopserve::worker::cuda
