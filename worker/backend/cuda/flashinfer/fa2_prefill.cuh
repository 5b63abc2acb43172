// FlashInfer's FA2 paged prefill, from compute capability 8.0 on: bf16, causal, f32 scores.
//
// Its dispatcher compiles a kernel for each amount of shared memory that a device could have; here
// the tile of keys is fixed, small enough for two blocks on a multiprocessor of capability 8.0.
#pragma once

#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/variants.cuh>

#include "worker/backend/cuda/flashinfer/flash_kernels.h"

namespace loopserve::worker::cuda {

// What FlashInfer's kernel reads, under its names.
struct Fa2Params {
  using DTypeQ = nv_bfloat16;
  using DTypeKV = nv_bfloat16;
  using DTypeO = nv_bfloat16;
  using IdType = int32_t;

  DTypeQ* q;
  flashinfer::paged_kv_t<DTypeKV, IdType> paged_kv;
  IdType* q_indptr;
  DTypeO* o;
  float* lse;
  flashinfer::uint_fastdiv group_size;
  float sm_scale;
  uint32_t num_qo_heads;
  IdType q_stride_n, q_stride_h;
  uint32_t k_sf_stride_page, k_sf_stride_n, k_sf_stride_h;
  uint32_t v_sf_stride_page, v_sf_stride_n, v_sf_stride_h;
  int32_t window_left;
  IdType *request_indices, *qo_tile_indices, *kv_tile_indices, *o_indptr, *kv_chunk_size_ptr;
  bool* block_valid_mask;
  bool partition_kv;

  // Sequences need not follow each other, so lengths have tables of their own.
  const int32_t* rows;
  const int32_t* kv_tokens;

  __host__ __device__ uint32_t get_qo_len(uint32_t sequence) const { return rows[sequence]; }
  __host__ __device__ uint32_t get_kv_len(uint32_t sequence) const { return kv_tokens[sequence]; }
};

inline flashinfer::paged_kv_t<nv_bfloat16, int32_t> PagedKvOf(const Fa2Launch& launch,
                                                              int32_t head_dim) {
  const FlashOperands& o = launch.operands;
  const int64_t strides[] = {o.block_stride, o.head_stride, head_dim};
  return {static_cast<uint32_t>(o.kv_heads),
          static_cast<uint32_t>(o.block_tokens),
          static_cast<uint32_t>(head_dim),
          static_cast<uint32_t>(launch.sequences),
          flashinfer::QKVLayout::kHND,
          static_cast<nv_bfloat16*>(const_cast<void*>(o.keys)),
          static_cast<nv_bfloat16*>(const_cast<void*>(o.values)),
          strides,
          const_cast<int32_t*>(o.blocks),
          const_cast<int32_t*>(launch.first_block),
          /*last_page_len=*/nullptr};
}

inline Fa2Params ParamsOf(const Fa2Launch& launch, int32_t head_dim) {
  const FlashOperands& o = launch.operands;
  Fa2Params params{};
  params.q = static_cast<nv_bfloat16*>(const_cast<void*>(o.q));
  params.paged_kv = PagedKvOf(launch, head_dim);
  params.q_indptr = const_cast<int32_t*>(launch.first_row);
  params.o = static_cast<nv_bfloat16*>(o.out);
  params.lse = launch.sums;
  params.group_size = flashinfer::uint_fastdiv(static_cast<uint32_t>(o.q_heads / o.kv_heads));
  params.sm_scale = o.scale;
  params.num_qo_heads = static_cast<uint32_t>(o.q_heads);
  params.q_stride_n = static_cast<int32_t>(o.q_stride);
  params.q_stride_h = head_dim;
  params.window_left = o.window_left;
  params.request_indices = const_cast<int32_t*>(launch.sequence);
  params.qo_tile_indices = const_cast<int32_t*>(launch.tile);
  params.kv_tile_indices = const_cast<int32_t*>(launch.chunk);
  params.o_indptr = const_cast<int32_t*>(launch.first_out);
  params.kv_chunk_size_ptr = const_cast<int32_t*>(launch.chunk_tokens);
  params.partition_kv = launch.sums != nullptr;
  params.rows = launch.rows;
  params.kv_tokens = launch.kv_tokens;
  return params;
}

// Steps of 16 keys in a tile: what keeps scores and sums in registers.
constexpr uint32_t Fa2KeySteps(int head_dim) { return head_dim == 256 ? 2 : 4; }

template <int kHeadDim, int kTileRows>
cudaError_t LaunchFa2(const Fa2Launch& launch, cudaStream_t stream) {
  using flashinfer::MaskMode;
  // The window costs two comparisons where keys are masked anyway; -1 lets it reach all keys.
  using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false,
                                               /*use_sliding_window=*/true,
                                               /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;
  using Traits = flashinfer::KernelTraits<
      MaskMode::kCausal, kTileRows, flashinfer::get_num_mma_q(kTileRows), Fa2KeySteps(kHeadDim),
      kHeadDim / 16, kHeadDim / 16, flashinfer::get_num_warps_q(kTileRows),
      flashinfer::get_num_warps_kv(kTileRows), flashinfer::PosEncodingMode::kNone, nv_bfloat16,
      nv_bfloat16, nv_bfloat16, float, int32_t, Variant>;
  static_assert(!Traits::IsInvalid());
  constexpr size_t kShared = sizeof(typename Traits::SharedStoragePaged);
  static_assert(kShared <= 82 * 1024, "two blocks must fit on a multiprocessor");
  const auto kernel = flashinfer::BatchPrefillWithPagedKVCacheKernel<Traits, Fa2Params>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(launch.tiles), 1,
                  static_cast<unsigned>(launch.operands.kv_heads));
  const dim3 block(32, Traits::NUM_WARPS_Q, Traits::NUM_WARPS_KV);
  kernel<<<grid, block, kShared, stream>>>(ParamsOf(launch, kHeadDim));
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
