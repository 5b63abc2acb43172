// The division of one step's attention into work for a GPU, made on the host.
//
// Query heads that share a KV head are *packed*: row r and head g of a group are the packed row
// r * heads + g, so that keys and values are read once for all of them. A *tile* is a few rows of
// one sequence with its packed rows; an *item* is a tile and a range of keys, the work of one
// thread block per KV head. Tiles whose keys are split over several items (flash decoding) leave
// partial results, one slot per item, which a second kernel combines in the order of the keys.
//
// All layers of a step use one plan: its `words` go to the device once. What a launch is shaped by,
// and only that, is the AttentionShape, whose numbers are rounded up (Bucket): steps of equal shape
// can share a CUDA graph, which finds the actual work in the words. Items beyond the actual ones
// have no rows and exit at once.
//
// Two kinds of tiles: `few` for sequences whose packed rows fit one small tile (decode), `many` for
// the rest. Where it can, the plan chooses kernels for tensor cores: see CanUseTensorCores.
//
// Thread rule: pure functions, safe from any thread. No CUDA types: tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kvstore/kv_shape.h"
#include "worker/backend/attention_plan.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

struct AttentionPlanOptions {
  ActivationType q_type = ActivationType::kBf16;
  bool q_aligned = true;  // rows of q start at multiples of 4 bytes, the arena at one of 16
  int32_t window = 0;     // a row sees its last `window` keys, its own included; 0: all
  // Sequences with at least so many rows are left to another kernel: no item of this plan.
  int64_t min_rows_elsewhere = std::numeric_limits<int64_t>::max();
};

// One kind of tiles. `items` and `split_tiles` are buckets.
struct AttentionPart {
  int32_t tile_rows = 0;    // packed rows of a tile
  int32_t items = 0;        // 0: no launch
  int32_t split_tiles = 0;  // tiles with partial results; 0: no combining, no workspace

  bool operator==(const AttentionPart&) const = default;
};

struct AttentionShape {
  bool tensor_cores = false;
  AttentionPart few;
  AttentionPart many;

  bool operator==(const AttentionShape&) const = default;
};

// Words of the plan, in this order: few's items, few's split tiles, many's items, its split tiles.
// Each is eight words long.
struct AttentionItem {
  int32_t sequence = 0;
  int32_t first_row = 0;  // of the sequence's rows
  int32_t rows = 0;       // 0: nothing to do
  int32_t key_begin = 0;  // a multiple of 16
  int32_t key_end = 0;
  int32_t slot = -1;  // of partial results; -1: the whole tile, written to `out`
  int32_t unused[2] = {};
};
struct AttentionSplitTile {
  int32_t sequence = 0;
  int32_t first_row = 0;
  int32_t rows = 0;  // 0: nothing to do
  int32_t first_slot = 0;
  int32_t slots = 0;  // in the order of the keys
  int32_t unused[3] = {};
};
static_assert(sizeof(AttentionItem) == 32 && sizeof(AttentionSplitTile) == 32);

struct AttentionPlan {
  AttentionShape shape;
  std::vector<int32_t> words;
};

// The smallest of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24 ... that is at least `count`.
int32_t Bucket(int32_t count);

// Heads of a group in one tile, and how many such parts a group has.
int32_t HeadsPerTile(int32_t group, int32_t tile_rows);
int32_t PartsOfGroup(int32_t group, int32_t tile_rows);

// bf16 queries over bf16 or int8 keys with head_dim 64 or 128 and blocks of a multiple of 16
// tokens.
bool CanUseTensorCores(const kvstore::KvShape& shape, const AttentionPlanOptions& options);

// `sms`: multiprocessors of the GPU. Dense sequences only: a LinePlan or WorkingSet is ignored.
AttentionPlan PlanAttention(std::span<const AttentionSequence> sequences, int32_t q_heads,
                            const kvstore::KvShape& shape, int32_t sms,
                            const AttentionPlanOptions& options = {});

// Offsets in `words` of the four arrays and their end.
struct AttentionWords {
  size_t few_items, few_tiles, many_items, many_tiles, end;
};
AttentionWords WordsOf(const AttentionShape& shape);

// Bytes of partial results that a launch of this shape needs; the same for all layers.
size_t WorkspaceBytes(const AttentionShape& shape, int32_t q_heads, const kvstore::KvShape& kv);

}  // namespace loopserve::worker::cuda
