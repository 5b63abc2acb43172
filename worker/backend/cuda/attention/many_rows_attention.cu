// Prefill attention: 64 packed rows, 16 to a warp, against keys that the four warps share.
//
// Keys pass in rounds of 64 through two buffers of shared memory: while the warps compute on one,
// the copies into the other are under way.
#include "worker/backend/cuda/attention/copy_group.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;
constexpr int kGroups = 4;  // of keys, in a round
constexpr int kRoundKeys = kGroups * kGroupKeys;

template <int kHeadDim, bool kInt8>
constexpr int kRoundBytes = kGroups* Group<kHeadDim, kInt8>::kBytes;

template <int kHeadDim, bool kInt8>
__device__ void CopyRound(const AttentionParams& p, const AttentionItem& item,
                          const uint32_t* blocks, int kv_head, int key0, unsigned char* round) {
  using G = Group<kHeadDim, kInt8>;
  // A warp copies a group.
  const int warp = threadIdx.x / 32;
  const int key = key0 + warp * kGroupKeys;
  static_assert(kWarps == kGroups);
  // A group behind the end becomes zeros; its block may not exist.
  const GroupSource source =
      key < item.key_end ? SourceOf(p.arena, blocks, key) : GroupSource{0, 0};
  CopyGroup<kHeadDim, kInt8, 32>(p.arena, kv_head, source, item.key_end - key, threadIdx.x % 32,
                                 round + warp * G::kBytes);
}

template <int kHeadDim, bool kInt8>
__device__ void Leave(const AttentionParams& p, const AttentionItem& item, const PackedRows& rows,
                      int m0, const WarpRows<kHeadDim, kInt8>& state) {
  using Rows = WarpRows<kHeadDim, kInt8>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = state.Total(h);
    const int m = m0 + lane / 4 + 8 * h;
    if (m >= rows.count) continue;
    const float normalizer = Normalizer(total);
    const int64_t at = item.slot < 0 ? 0 : PartialIndex(p, item.slot, blockIdx.y, gridDim.y, m);
#pragma unroll
    for (int t = 0; t < Rows::kTiles; ++t) {
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        const int d = Rows::DimOf(t, e);
        if (item.slot < 0) {
          StoreOut(p, rows, m, d, state.sum(t, e) * normalizer);
        } else {
          p.sums[at * kHeadDim + d] = state.sum(t, e);
        }
      }
    }
    if (item.slot >= 0 && lane % 4 == 0) p.norms[at] = make_float2(state.highest(h), total);
  }
}

template <int kHeadDim, bool kInt8>
__global__ void __launch_bounds__(kThreads, 2) ManyRowsAttention(AttentionParams p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  constexpr int kBytes = kRoundBytes<kHeadDim, kInt8>;
  const AttentionItem item = p.items[blockIdx.x];
  if (item.rows == 0) return;
  const PackedRows rows =
      RowsOf(p, item.sequence, item.first_row, item.rows, static_cast<int>(blockIdx.y));
  const uint32_t* blocks = p.sequences.blocks + p.sequences.first_block[item.sequence];
  const int m0 = threadIdx.x / 32 * 16;
  CopyRound<kHeadDim, kInt8>(p, item, blocks, rows.kv_head, item.key_begin, shared_memory);
  CommitCopies();
  WarpRows<kHeadDim, kInt8> state(p, rows, m0);
  // Later keys are hidden from all rows of this warp.
  const int last = rows.position_of(min(m0 + 15, rows.count - 1));
  int buffer = 0;
  for (int key0 = item.key_begin; key0 < item.key_end; key0 += kRoundKeys) {
    if (key0 + kRoundKeys < item.key_end) {
      CopyRound<kHeadDim, kInt8>(p, item, blocks, rows.kv_head, key0 + kRoundKeys,
                                 shared_memory + (buffer ^ 1) * kBytes);
    }
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();  // what all warps copied is there
    if (m0 < rows.count && key0 <= last) {
      state.template Add<kGroups>(shared_memory + buffer * kBytes, key0, item.key_end, p);
    }
    __syncthreads();  // all warps have read the buffer that the next round fills
    buffer ^= 1;
  }
  WaitCopies<0>();
  Leave(p, item, rows, m0, state);
}

template <int kHeadDim, bool kInt8>
cudaError_t Launch(const AttentionParams& p, int items, int grid_parts, cudaStream_t stream) {
  return LaunchKernel(ManyRowsAttention<kHeadDim, kInt8>, dim3(items, grid_parts), kThreads,
                      2 * kRoundBytes<kHeadDim, kInt8>, stream, p);
}

}  // namespace

cudaError_t LaunchManyRowsAttention(const AttentionParams& p, kvstore::KvDtype dtype, int items,
                                    int grid_parts, cudaStream_t stream) {
  const bool int8 = dtype == kvstore::KvDtype::kInt8;
  if (p.tile_rows != kRows || dtype == kvstore::KvDtype::kF32) return cudaErrorInvalidValue;
  if (p.head_dim == 64) {
    return (int8 ? Launch<64, true> : Launch<64, false>)(p, items, grid_parts, stream);
  }
  if (p.head_dim == 128) {
    return (int8 ? Launch<128, true> : Launch<128, false>)(p, items, grid_parts, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace loopserve::worker::cuda
