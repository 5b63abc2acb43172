// One step of the engine: what the leader decided, and what came back. Identical on every rank.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/ids.h"
#include "kvstore/block_pool.h"
#include "worker/backend/attention_plan.h"
#include "worker/backend/sampling.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker {

struct StepPlan {
  // One sequence's rows: its tokens at positions [kv_tokens - rows, kv_tokens).
  struct Part {
    int64_t rows = 0;
    int64_t kv_tokens = 0;                // after this step
    std::vector<common::BlockId> blocks;  // that hold positions [0, kv_tokens)
    const LinePlan* lines = nullptr;      // from the KV policy; null: dense
    const WorkingSet* working_set = nullptr;
  };
  std::vector<Part> parts;  // in row order
  // The blocks that this step writes. They stay pinned as long as any rank may still be at it, also
  // one that the others have given up.
  std::vector<kvstore::BlockHandle> written;
  std::vector<common::TokenId> tokens;  // [rows]
  std::vector<int32_t> positions;       // [rows]
  std::vector<int32_t> logit_rows;      // ascending
  SamplingPlan sampling;                // [logit_rows]; none: the logits themselves are wanted
};

struct StepResult {
  TensorView logits;                   // [logit_rows, vocab], of a plan without sampling
  std::span<const RowChoice> choices;  // [logit_rows], of one with
  absl::Duration skew;                 // between the first and the last rank finishing
};

}  // namespace loopserve::worker
