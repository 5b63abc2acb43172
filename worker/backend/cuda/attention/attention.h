// Dense causal attention over paged keys and values, as attention_plan_cuda.h divides it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kvstore/kv_shape.h"
#include "worker/backend/cuda/attention/attention_plan_cuda.h"
#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

struct AttentionLaunch {
  TensorView q;                    // [rows, q_heads * head_dim]
  TensorView out;                  // likewise; either type, not q
  DeviceSequences sequences;       // those that were planned for, in the same order
  AttentionShape shape;            // of the plan
  const int32_t* words = nullptr;  // the plan's, on the device, aligned to 16 bytes
  int32_t q_heads = 0;             // a multiple of kv.kv_heads
  kvstore::KvShape kv;
  const std::byte* arena = nullptr;  // its base
  int32_t layer = 0;
  float scale = 0;            // of the scores, 1 / sqrt(head_dim) usually
  int32_t window = 0;         // as planned
  void* workspace = nullptr;  // WorkspaceBytes(shape, ...), aligned to 16 bytes; no initial value
};

// Writes the rows of `out` that the plan has items for and no other. Scores, softmax and sums are
// f32; with tensor cores the softmax's weights are rounded to bf16 before they multiply the values.
// The result is a function of the inputs and the plan: no atomics, one order of sums. head_dim is
// at most 256. cudaErrorInvalidValue for a shape that the kernels do not take.
cudaError_t LaunchAttention(const AttentionLaunch& args, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
