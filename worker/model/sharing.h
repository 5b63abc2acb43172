// Which part of a model each tensor-parallel rank has.
//
// Rows and columns are split as evenly as they go. Attention is shared in whole query heads, such
// that each KV head of a rank is read by equally many of the rank's query heads:
//
// - No more ranks than KV heads: a rank has whole KV heads, with all query heads that read them.
// - More: every rank has one KV head. The ranks are shared among the KV heads as evenly as they go,
//   and those of one KV head share the query heads that read it. So 9 query heads on 3 KV heads
//   make 2, 1, 2, 1, 3 on five ranks, the first two of which hold the same keys and values.
//
// Either way the ranks' query heads follow each other, each on one rank, and a KV head that several
// ranks hold is the last of one and the first of the next.
//
// Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <functional>

#include "kvstore/kv_shape.h"
#include "worker/backend/backend.h"

namespace loopserve::worker {

// One rank of a group, 0 <= rank < size.
struct ShardSpec {
  int rank = 0;
  int size = 1;
};

// The rank's part of `total`; the first ranks have one more. Empty parts if there are more ranks.
RowRange SplitEvenly(int64_t total, const ShardSpec& shard);

// The rank's heads, among all of the model. q_heads is a multiple of kv_heads; with more ranks than
// query heads, some have none.
RowRange KvHeadsOf(int64_t kv_heads, const ShardSpec& shard);
RowRange QueryHeadsOf(int64_t q_heads, int64_t kv_heads, const ShardSpec& shard);

// The rank's range of a tensor's outputs, or of its inputs.
using Sharing = std::function<RowRange(const ShardSpec&)>;
Sharing Evenly(int64_t units, int64_t unit_size = 1);
Sharing ByKvHeads(int64_t kv_heads, int64_t head_dim);
Sharing ByQueryHeads(int64_t q_heads, int64_t kv_heads, int64_t head_dim);

// What a rank holds of a logical block of KV.
kvstore::KvShape ShardOf(const kvstore::KvShape& logical, const ShardSpec& shard);
// Bytes of a logical block in the memory of all ranks together: more than its own where several
// hold the same head.
uint64_t BlockBytesOnRanks(const kvstore::KvShape& logical, int ranks);

}  // namespace loopserve::worker
