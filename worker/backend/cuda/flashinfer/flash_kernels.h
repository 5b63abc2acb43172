// Between flash_prefill.cc and the kernels of FlashInfer: plain structs, so that no FlashInfer
// header is met outside the .cu files. One instantiation per .cu file.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace loopserve::worker::cuda {

// What both paths read. Strides are in values.
struct FlashOperands {
  const void* q = nullptr;
  void* out = nullptr;
  const void* keys = nullptr;  // of the layer, in block 0
  const void* values = nullptr;
  int64_t q_stride = 0;  // from one row to the next
  int64_t out_stride = 0;
  int64_t rows = 0;  // of q and out
  int64_t block_stride = 0;
  int64_t head_stride = 0;  // from one KV head to the next, inside a block
  int32_t block_tokens = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t window_left = -1;  // keys before a row's own that it sees; -1: all
  float scale = 0;
  const int32_t* blocks = nullptr;
};

// Tables as in FlashTables.
struct Fa2Launch {
  FlashOperands operands;
  int32_t tiles = 0;
  int32_t sequences = 0;
  float* sums = nullptr;  // not null: keys are split; `operands.out` takes the partial results
  const int32_t* sequence = nullptr;
  const int32_t* tile = nullptr;
  const int32_t* chunk = nullptr;
  const int32_t* first_row = nullptr;
  const int32_t* first_out = nullptr;
  const int32_t* rows = nullptr;
  const int32_t* kv_tokens = nullptr;
  const int32_t* first_block = nullptr;
  const int32_t* chunk_tokens = nullptr;
};

struct Sm90Launch {
  FlashOperands operands;
  int32_t multiprocessors = 0;
  const int32_t* first_work = nullptr;
  const int32_t* head = nullptr;
  const int32_t* tile = nullptr;
  const int32_t* sequence = nullptr;
  const int32_t* first_row = nullptr;
  const int32_t* rows = nullptr;
  const int32_t* kv_tokens = nullptr;
  const int32_t* first_block = nullptr;
};

// out row merge_row[r] = the partial results merge_first[r] ... merge_first[r + 1] - 1, weighed by
// 2 to the power of their sums.
struct MergeLaunch {
  const void* partials = nullptr;  // [partial rows, q_heads, head_dim] bf16
  const float* sums = nullptr;     // [partial rows, q_heads], base 2 logarithms
  const int32_t* merge_row = nullptr;
  const int32_t* merge_first = nullptr;
  void* out = nullptr;
  int64_t out_stride = 0;
  int32_t rows = 0;
  int32_t q_heads = 0;
  int32_t head_dim = 0;
};

template <int kHeadDim, int kTileRows>
cudaError_t LaunchFa2(const Fa2Launch& launch, cudaStream_t stream);
template <int kHeadDim>
cudaError_t LaunchSm90(const Sm90Launch& launch, cudaStream_t stream);
cudaError_t LaunchMerge(const MergeLaunch& launch, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
