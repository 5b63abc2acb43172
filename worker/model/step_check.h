// The checks that every architecture owes its caller before a step: nothing in a batch may make an
// op read or write outside what it was given.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kvstore/block_pool.h"
#include "worker/comm/communicator.h"
#include "worker/model/model.h"

namespace loopserve::worker {

// How many positions a model loaded with `options` can compute.
int64_t PositionsOf(const ModelConfig& config, const ModelOptions& options);

// InvalidArgument for a batch that is empty, larger than `options`, inconsistent in itself, or not
// of this shard's arena and communicator.
absl::Status CheckStep(const StepBatch& batch, const kvstore::KvArena& kv, const Communicator& comm,
                       const ModelConfig& config, const ShardSpec& shard,
                       const ModelOptions& options);

}  // namespace loopserve::worker
