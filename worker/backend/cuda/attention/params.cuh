// What all attention kernels are given, and what they share: which rows a thread block has, which
// keys they see, where vectors lie in the arena, and how results leave.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kvstore/kv_shape.h"
#include "worker/backend/cuda/attention/attention_plan_cuda.h"
#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

struct ArenaLayout {
  const std::byte* base[2];  // keys and values of the layer's first head in block 0
  size_t block_bytes;
  size_t head_bytes;
  size_t scale_offset;  // from a head's first vector to its scales
  int block_tokens;
};

struct AttentionParams {
  const void* q;
  void* out;
  int64_t q_stride;
  int64_t out_stride;
  ActivationType q_type;
  ActivationType out_type;
  DeviceSequences sequences;
  const AttentionItem* items;
  const AttentionSplitTile* split_tiles;
  ArenaLayout arena;
  int head_dim;
  int group;           // query heads per KV head
  int heads_per_tile;  // of a group
  int parts;           // of a group
  int tile_rows;       // packed
  float scale_log2;    // of the scores, times log2(e)
  int window;
  float* sums;    // partial results: [slots, kv_heads * parts, tile_rows, head_dim], unnormalised
  float2* norms;  // [slots, kv_heads * parts, tile_rows]: the highest score (log2), sum of weights
};

// The packed rows of one thread block.
struct PackedRows {
  int first_out;   // row of the step
  int first_head;  // query head
  int heads;
  int kv_head;
  int position;  // absolute, of the first row
  int count;     // packed rows

  __device__ int row(int m) const { return m / heads; }
  __device__ int head(int m) const { return first_head + m % heads; }
  __device__ int position_of(int m) const { return position + m / heads; }
};

// `part` is one of kv_heads * parts, blockIdx.y.
__device__ inline PackedRows RowsOf(const AttentionParams& p, int sequence, int first_row, int rows,
                                    int part) {
  PackedRows r;
  r.kv_head = part / p.parts;
  const int first = (part - r.kv_head * p.parts) * p.heads_per_tile;
  r.first_head = r.kv_head * p.group + first;
  r.heads = min(p.heads_per_tile, p.group - first);
  r.first_out = p.sequences.first_row[sequence] + first_row;
  r.position = p.sequences.kv_tokens[sequence] - p.sequences.num_rows[sequence] + first_row;
  r.count = rows * r.heads;
  return r;
}

__device__ inline bool Sees(int position, int key, int window) {
  return key <= position && (window <= 0 || key > position - window);
}

__device__ inline int64_t QueryIndex(const AttentionParams& p, const PackedRows& rows, int m) {
  return (rows.first_out + rows.row(m)) * p.q_stride + int64_t(rows.head(m)) * p.head_dim;
}

__device__ inline float LoadActivation(const void* data, ActivationType type, int64_t index) {
  if (type == ActivationType::kF32) return static_cast<const float*>(data)[index];
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
}

__device__ inline void StoreOut(const AttentionParams& p, const PackedRows& rows, int m, int dim,
                                float value) {
  const int64_t at =
      (rows.first_out + rows.row(m)) * p.out_stride + int64_t(rows.head(m)) * p.head_dim + dim;
  if (p.out_type == ActivationType::kF32) {
    static_cast<float*>(p.out)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16_rn(value);
  }
}

// Of partial results, in vectors.
__device__ inline int64_t PartialIndex(const AttentionParams& p, int slot, int part, int parts,
                                       int m) {
  return (int64_t(slot) * parts + part) * p.tile_rows + m;
}

// 1 / sum, and 0 for rows that saw nothing.
__device__ inline float Normalizer(float sum) { return sum == 0 ? 0.0f : 1.0f / sum; }

// The block that holds `key`, as bytes from the arena's base.
__device__ inline size_t BlockOffset(const ArenaLayout& arena, const uint32_t* blocks, int key) {
  return size_t(__ldg(blocks + key / arena.block_tokens)) * arena.block_bytes;
}

// Launchers of one kernel each; grid.x = items or tiles, grid.y = kv_heads * parts.
cudaError_t LaunchGenericAttention(const AttentionParams& p, kvstore::KvDtype dtype, int items,
                                   int grid_parts, cudaStream_t stream);
cudaError_t LaunchFewRowsAttention(const AttentionParams& p, kvstore::KvDtype dtype, int items,
                                   int grid_parts, cudaStream_t stream);
cudaError_t LaunchManyRowsAttention(const AttentionParams& p, kvstore::KvDtype dtype, int items,
                                    int grid_parts, cudaStream_t stream);
cudaError_t LaunchCombine(const AttentionParams& p, int tiles, int grid_parts, cudaStream_t stream);

using AttentionKernel = void (*)(AttentionParams);

// Puts a kernel on the stream, with as much dynamic shared memory as it asks for.
inline cudaError_t LaunchKernel(AttentionKernel kernel, dim3 grid, int threads, size_t shared_bytes,
                                cudaStream_t stream, const AttentionParams& p) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  AttentionParams copy = p;
  void* args[] = {&copy};
  return cudaLaunchKernel(function, grid, dim3(static_cast<unsigned>(threads)), args, shared_bytes,
                          stream);
}

}  // namespace loopserve::worker::cuda
