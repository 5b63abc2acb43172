// Dense causal prefill attention over the paged KV, by FlashInfer's kernels.
//
// A step is planned once (flash_plan.h), its tables go to the device with the step's other tables,
// and every layer launches with the same plan. Queries, keys, values and the result are bf16;
// scores and sums are f32. Row r of a sequence stands at position kv_tokens - rows + r and sees the
// keys up to its own position, at most `window` of them. Query heads share KV heads evenly.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kvstore/kv_shape.h"
#include "worker/backend/cuda/flashinfer/flash_plan.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

// Whether LaunchFlashPrefill serves these types on a device of this capability (10 * major +
// minor).
bool FlashPrefillSupports(int32_t head_dim, kvstore::KvDtype kv, ActivationType activations,
                          int32_t capability);

// One layer of one step. Pointers are device memory, but for `plan`, which is read during the call
// only.
struct FlashPrefillLaunch {
  const FlashPrefillPlan* plan = nullptr;
  const uint32_t* words = nullptr;   // the uploaded vector that the plan's tables were appended to
  void* workspace = nullptr;         // plan->workspace_bytes, 16-byte aligned; used until the end
  const std::byte* arena = nullptr;  // block b begins at b * kv.block_bytes()
  kvstore::KvShape kv;               // kBf16
  int32_t layer = 0;
  TensorView q;     // [rows, q_heads * head_dim], kBf16, rows 16-byte aligned
  TensorView out;   // the same shape and type, stride = cols
  float scale = 0;  // of the scores, before the softmax
};

// Puts one layer's kernels on `stream`. cudaErrorInvalidValue when the views, the KV shape or the
// workspace do not fit the plan. Capturable; a recorded launch computes its own plan again, over
// whatever the tables and views then hold. Thread rule: as kernels/launch.h.
cudaError_t LaunchFlashPrefill(const FlashPrefillLaunch& launch, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
