// Random contents for memory whose speed alone counts: finite in every number format, and the same
// for the same seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kvstore/kv_shape.h"
#include "worker/backend/weight_types.h"

namespace loopserve::bench {

// Fills whole blocks of the format with values of standard deviation about `sigma`, mean zero.
// InvalidArgument for a part of a block, Unimplemented for formats other than F32, BF16, Q4_0 and
// Q8_0.
absl::Status FillWeights(worker::WeightType type, double sigma, uint64_t seed,
                         std::span<std::byte> out);

// Fills one logical KV block, `shape.block_bytes()` bytes, with vectors of values in (-1, 1).
void FillKvBlock(const kvstore::KvShape& shape, uint64_t seed, std::span<std::byte> out);

}  // namespace loopserve::bench
