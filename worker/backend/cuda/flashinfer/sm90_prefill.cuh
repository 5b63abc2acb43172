// FlashInfer's paged prefill for compute capability 9.0: warpgroup products, a warpgroup that
// copies beside those that compute. To be compiled for sm_90a only.
#pragma once

// FlashInfer's hopper headers take all of CUTLASS's device-wide kernels and test utilities (which
// need cuRAND) with them through this one header, of which they use only what is included below.
#define FLASHINFER_CUTLASS_UTILS_CUH_
#include <cuda_fp8.h>

#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>
#include <cute/tensor.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>

#include <flashinfer/attention/hopper/attention_updater.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>

#include "worker/backend/cuda/flashinfer/flash_kernels.h"
#include "worker/backend/cuda/flashinfer/sm90_tile.h"

namespace loopserve::worker::cuda {

// What FlashInfer's kernel reads, under its names.
struct Sm90Params {
  using DTypeQ = cutlass::bfloat16_t;
  using DTypeKV = cutlass::bfloat16_t;
  using DTypeO = cutlass::bfloat16_t;
  using IdType = int32_t;

  struct AdditionalParams {
    float sm_scale;
  };

  DTypeQ* q_ptr;
  DTypeKV* k_ptr;
  DTypeKV* v_ptr;
  DTypeO* o_ptr;
  float* lse_ptr;
  IdType *qo_tile_indices, *qo_indptr, *kv_indptr, *kv_indices, *qo_lens, *kv_lens;
  IdType *head_indices, *work_indptr, *batch_indices;
  AdditionalParams additional_params;
  int64_t q_stride_n, k_stride_n, v_stride_n, o_stride_n;
  int64_t q_stride_h, k_stride_h, v_stride_h, o_stride_h;
  int64_t nnz_qo;
  int64_t k_page_stride, v_page_stride;
  int num_qo_heads, num_kv_heads;
  int page_size;
  int window_left;
};

inline void SetOperands(const FlashOperands& o, int head_dim, Sm90Params& params) {
  params.q_ptr = static_cast<cutlass::bfloat16_t*>(const_cast<void*>(o.q));
  params.k_ptr = static_cast<cutlass::bfloat16_t*>(const_cast<void*>(o.keys));
  params.v_ptr = static_cast<cutlass::bfloat16_t*>(const_cast<void*>(o.values));
  params.o_ptr = static_cast<cutlass::bfloat16_t*>(o.out);
  params.kv_indices = const_cast<int32_t*>(o.blocks);
  params.additional_params.sm_scale = o.scale;
  params.q_stride_n = o.q_stride;
  params.o_stride_n = o.out_stride;
  params.q_stride_h = params.o_stride_h = head_dim;
  params.k_stride_n = params.v_stride_n = head_dim;
  params.k_stride_h = params.v_stride_h = o.head_stride;
  params.k_page_stride = params.v_page_stride = o.block_stride;
  params.nnz_qo = o.rows;
  params.num_qo_heads = o.q_heads;
  params.num_kv_heads = o.kv_heads;
  params.page_size = o.block_tokens;
  params.window_left = -1;
}

inline Sm90Params ParamsOf(const Sm90Launch& launch, int head_dim) {
  Sm90Params params{};
  SetOperands(launch.operands, head_dim, params);
  params.work_indptr = const_cast<int32_t*>(launch.first_work);
  params.head_indices = const_cast<int32_t*>(launch.head);
  params.qo_tile_indices = const_cast<int32_t*>(launch.tile);
  params.batch_indices = const_cast<int32_t*>(launch.sequence);
  params.qo_indptr = const_cast<int32_t*>(launch.first_row);
  params.qo_lens = const_cast<int32_t*>(launch.rows);
  params.kv_lens = const_cast<int32_t*>(launch.kv_tokens);
  params.kv_indptr = const_cast<int32_t*>(launch.first_block);
  return params;
}

template <int kHeadDim>
cudaError_t LaunchSm90(const Sm90Launch& launch, cudaStream_t stream) {
  // Keys of a tile, as FlashInfer's dispatcher picks them.
  constexpr int kTileKeys = 96;
  constexpr int kStages = 2;
  using Traits = flashinfer::AttentionKernelTraits<
      /*USE_TMA_LOAD_KV=*/false, kHeadDim, kHeadDim, Sm90TileRows(kHeadDim), kTileKeys, kStages,
      Sm90Params::DTypeQ, Sm90Params::DTypeKV, Sm90Params::DTypeO, Sm90Params::IdType,
      flashinfer::StandardAttention>;
  // FlashInfer launches a block for each multiprocessor of the device, and each reads its own list.
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  if (multiprocessors != launch.multiprocessors) return cudaErrorInvalidValue;
  Sm90Params params = ParamsOf(launch, kHeadDim);
  error = flashinfer::BatchPrefillWithPagedKVCacheKernelTraitsDispatched<
      Traits, /*LEFT_SLIDING_WINDOW=*/false, /*CAUSAL=*/true,
      /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false>(params, stream);
  return error != cudaSuccess ? error : cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
