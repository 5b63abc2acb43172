// What attention computes in one step: which rows of which sequences, over which paged keys.
//
// Dense attention is the special case without a plan. A LinePlan (sparse prefill: vertical and
// slash lines per query head) or a WorkingSet (decode: chosen key positions per KV head) narrows
// the keys that a sequence's rows read; neither ever removes a key from the cache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"

namespace loopserve::worker {

// Sparse prefill (arXiv 2507.13681, phase 1). Per query head, sorted ascending. A vertical line j
// is key j for every row that sees it; a slash line d is, for the row at absolute position p, key p
// - d.
struct LinePlan {
  struct Head {
    std::vector<int32_t> verticals;
    std::vector<int32_t> slashes;
  };
  std::vector<Head> heads;  // one per local query head
};

// Decode (phase 2). Per KV head the sorted key positions to read, beside all keys from
// `dense_from` on (what was generated since the choice was made).
struct WorkingSet {
  std::vector<std::vector<int32_t>> keys;  // one per local KV head
  int64_t dense_from = 0;
};

// One sequence's part of a step. Its rows are rows [first_row, first_row + rows) of the step's
// activations and have absolute positions kv_tokens - rows ... kv_tokens - 1; row r sees keys
// 0 ... its own position (causal).
struct AttentionSequence {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t kv_tokens = 0;  // keys visible to the last row, the new rows' own included
  std::span<const common::BlockId> blocks;  // block b holds positions [b, b + 1) * block_tokens
  const LinePlan* lines = nullptr;          // null: dense
  const WorkingSet* working_set = nullptr;  // null: dense
};

}  // namespace loopserve::worker
