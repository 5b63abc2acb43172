// Loading the ranks of a group: their backends, their shards of the model, and the pool of KV
// blocks in the memory of all of them. What it will take is predicted, for each device by itself,
// before any of it is loaded.
//
// Thread rule: one thread, which loads rank after rank.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/log.h"
#include "kvstore/block_pool.h"
#include "worker/engine/rank_group.h"
#include "worker/model/gguf.h"

namespace loopserve::worker {

struct LoadedRanks {
  std::vector<RankGroup::Rank> ranks;
  kvstore::KvShape shape;  // of a block of these ranks' heads, or of all heads where a pool is
  std::vector<kvstore::KvBlockPool::Shard> shards;  // of these ranks
  uint32_t blocks = 0;                              // of the pool, or that there is room for
  std::unique_ptr<kvstore::KvBlockPool> pool;       // in memory of the ranks' backends: goes first
};

// The KV heads of some ranks together.
RowRange KvHeadsOfRanks(int64_t kv_heads, RankRange ranks, int tp);

// The ranks without a pool; `config` is what ReadModelConfig made of the file. `pods`, unless null,
// may join as soon as it is known what they have to load. Errors as RankGroup::Create has them;
// FailedPrecondition when not all ranks can have the backend that was named.
absl::StatusOr<LoadedRanks> LoadShards(const GgufFile& file, const ModelConfig& config,
                                       const RankGroupOptions& options, common::Logger& log,
                                       RankPods* pods = nullptr);

// The ranks and the pool, whose memory is also that of the `pods`, which this waits for.
absl::StatusOr<LoadedRanks> LoadRanks(const GgufFile& file, const RankGroupOptions& options,
                                      common::Logger& log, RankPods* pods = nullptr);

}  // namespace loopserve::worker
