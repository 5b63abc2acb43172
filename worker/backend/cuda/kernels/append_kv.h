// Writes the new rows' keys and values into the paged arena of one layer.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kvstore/kv_shape.h"
#include "worker/backend/cuda/kernels/launch.h"

namespace loopserve::worker::cuda {

// k and v: [rows, kv_heads * head_dim], either activation type, each its own. Row r of a sequence
// goes to position kv_tokens - rows + r, rounded to the arena's dtype: bf16 to nearest even, int8
// and fp8 as kvstore/scaled_vector.h defines, bit for bit. `arena` is the base of the arena
// (KvArena::base).
cudaError_t LaunchAppendKv(TensorView k, TensorView v, const DeviceSequences& sequences,
                           const kvstore::KvShape& shape, std::byte* arena, int32_t layer,
                           cudaStream_t stream);

}  // namespace loopserve::worker::cuda
