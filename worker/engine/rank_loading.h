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
  std::unique_ptr<kvstore::KvBlockPool> pool;  // in memory of the ranks' backends: goes first
};

// Errors as RankGroup::Create has them; FailedPrecondition when not all ranks can have the backend
// that was named.
absl::StatusOr<LoadedRanks> LoadRanks(const GgufFile& file, const RankGroupOptions& options,
                                      common::Logger& log);

}  // namespace loopserve::worker
