// The plan of one step's dense prefill attention: which thread block computes which tile.
//
// A *tile* is a run of rows of one sequence whose scores against a run of that sequence's keys one
// thread block computes. Where a step has too few tiles to fill the device (a short turn over a
// long history), the keys are *split* into chunks too: every chunk leaves a partial result in the
// workspace, and a merge weighs them by their sums. One plan serves all layers of the step.
//
// Plain host arithmetic: no CUDA type, no device call. Thread rule: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/backend/attention_plan.h"

namespace loopserve::worker::cuda {

enum class FlashPath : uint8_t {
  kAuto,
  kFa2,   // from compute capability 8.0 on: packs the query heads of a KV head, splits keys
  kSm90,  // compute capability 9.0: warpgroup products, no split, no window, head_dim 64 or 128
};

struct FlashPrefillShape {
  int32_t q_heads = 0;   // of this rank, a multiple of kv_heads
  int32_t kv_heads = 0;  // of this rank
  int32_t head_dim = 0;
  int32_t block_tokens = 0;
  int32_t window = 0;  // keys a row sees at most, its own included; 0: all keys before it
};

struct FlashPrefillDevice {
  int32_t capability = 0;       // 10 * major + minor
  int32_t multiprocessors = 0;  // cudaDevAttrMultiProcessorCount
};

// Where the tables lie, in words from the first word of the vector they were appended to.
struct FlashTables {
  // [tiles]: the sequence, the tile inside it (counted in tile_rows) and, by path, the chunk of
  // keys (kFa2) or the query head (kSm90).
  size_t sequence = 0, tile = 0, chunk = 0, head = 0;
  // kFa2: [sequences]; kSm90: [tiles]. first_block counts from `blocks`.
  size_t first_row = 0, rows = 0, kv_tokens = 0, first_block = 0;
  size_t first_out = 0;     // kFa2: [sequences] row of `out`, or of the partial results
  size_t chunk_tokens = 0;  // kFa2: one word
  size_t first_work = 0;    // kSm90: [multiprocessors + 1] into the tiles
  size_t merge_row = 0;     // split: [rows] row of `out`
  size_t merge_first = 0;   // split: [rows + 1] into the partial results
  size_t blocks = 0;        // ids of all sequences
};

struct FlashPrefillPlan {
  FlashPath path = FlashPath::kFa2;  // never kAuto
  FlashPrefillShape shape;
  int32_t multiprocessors = 0;
  int32_t sequences = 0;
  int32_t rows = 0;            // of all sequences
  int32_t end_row = 0;         // rows that q and out must have
  int32_t tiles = 0;           // 0: nothing to compute
  int32_t tile_rows = 0;       // kFa2: pairs (row, query head of a KV head); kSm90: rows
  int64_t partial_rows = 0;    // 0: keys are not split
  size_t workspace_bytes = 0;  // device memory for the partial results
  FlashTables tables;
};

// Plans dense causal attention for `sequences`; whose rows other kernels compute are left out by
// the caller, and their rows of `out` stay untouched. Appends the tables to `words`, which the
// caller uploads. `prefer` is for benchmarks: a path that does not support the shape is not taken.
// InvalidArgument when a sequence has more rows than keys or too few blocks, or when no path
// supports the shape (FlashPathSupports).
absl::StatusOr<FlashPrefillPlan> PlanFlashPrefill(const FlashPrefillShape& shape,
                                                  const FlashPrefillDevice& device,
                                                  std::span<const AttentionSequence> sequences,
                                                  FlashPath prefer, std::vector<uint32_t>& words);

// `path` is not kAuto. Says nothing about types: both paths are for bf16 throughout.
bool FlashPathSupports(FlashPath path, const FlashPrefillShape& shape, int32_t capability);

}  // namespace loopserve::worker::cuda
