#include "worker/model/sharing.h"

#include <algorithm>

namespace loopserve::worker {
namespace {

RowRange Scaled(const RowRange& range, int64_t by) { return {range.begin * by, range.end * by}; }

// With more ranks than KV heads: the rank's KV head, and its place among the ranks that have it.
struct Team {
  int64_t kv_head = 0;
  ShardSpec place;
};

Team TeamOf(int64_t kv_heads, const ShardSpec& shard) {
  const auto heads = static_cast<int>(kv_heads);
  for (int head = 0; head < heads; ++head) {
    const RowRange ranks = SplitEvenly(shard.size, {head, heads});
    if (shard.rank < ranks.end) {
      return {head, {static_cast<int>(shard.rank - ranks.begin), static_cast<int>(ranks.size())}};
    }
  }
  return {};
}

}  // namespace

RowRange SplitEvenly(int64_t total, const ShardSpec& shard) {
  const int64_t share = total / shard.size;
  const int64_t extra = total % shard.size;
  const int64_t begin = share * shard.rank + std::min<int64_t>(shard.rank, extra);
  return {begin, begin + share + (shard.rank < extra ? 1 : 0)};
}

RowRange KvHeadsOf(int64_t kv_heads, const ShardSpec& shard) {
  if (shard.size <= kv_heads) return SplitEvenly(kv_heads, shard);
  const int64_t head = TeamOf(kv_heads, shard).kv_head;
  return {head, head + 1};
}

RowRange QueryHeadsOf(int64_t q_heads, int64_t kv_heads, const ShardSpec& shard) {
  const int64_t group = q_heads / kv_heads;
  if (shard.size <= kv_heads) return Scaled(SplitEvenly(kv_heads, shard), group);
  const Team team = TeamOf(kv_heads, shard);
  const RowRange part = SplitEvenly(group, team.place);
  const int64_t first = team.kv_head * group;
  return {first + part.begin, first + part.end};
}

Sharing Evenly(int64_t units, int64_t unit_size) {
  return [=](const ShardSpec& shard) { return Scaled(SplitEvenly(units, shard), unit_size); };
}

Sharing ByKvHeads(int64_t kv_heads, int64_t head_dim) {
  return [=](const ShardSpec& shard) { return Scaled(KvHeadsOf(kv_heads, shard), head_dim); };
}

Sharing ByQueryHeads(int64_t q_heads, int64_t kv_heads, int64_t head_dim) {
  return [=](const ShardSpec& shard) {
    return Scaled(QueryHeadsOf(q_heads, kv_heads, shard), head_dim);
  };
}

kvstore::KvShape ShardOf(const kvstore::KvShape& logical, const ShardSpec& shard) {
  kvstore::KvShape shape = logical;
  shape.kv_heads = static_cast<int32_t>(KvHeadsOf(logical.kv_heads, shard).size());
  return shape;
}

uint64_t BlockBytesOnRanks(const kvstore::KvShape& logical, int ranks) {
  uint64_t bytes = 0;
  for (int rank = 0; rank < ranks; ++rank) bytes += ShardOf(logical, {rank, ranks}).block_bytes();
  return bytes;
}

}  // namespace loopserve::worker
