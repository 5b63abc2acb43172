// Prefill attention over bf16 keys: rounds of 64 keys pass through three buffers of shared memory;
// while the warps compute on one, copies into the other two are under way.
#include "worker/backend/cuda/attention/many_rows.cuh"
#include "worker/backend/cuda/attention/shared_memory.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kBuffers = 3;

template <int kHeadDim>
constexpr int kRoundBytes = ManyRows::kGroups* Group<kHeadDim, KvDtype::kBf16>::kBytes;

template <int kHeadDim>
__global__ void __launch_bounds__(ManyRows::kThreads, 1) ManyRowsAttention(AttentionParams p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const AttentionItem item = p.items[blockIdx.x];
  if (item.rows == 0) return;
  const PackedRows rows =
      RowsOf(p, item.sequence, item.first_row, item.rows, static_cast<int>(blockIdx.y));
  const uint32_t* blocks = p.sequences.blocks + p.sequences.first_block[item.sequence];
  const auto copy = [&](int n) {
    CopyRound<kHeadDim, KvDtype::kBf16>(p, item, blocks, rows.kv_head, n,
                                        shared_memory + n % kBuffers * kRoundBytes<kHeadDim>);
  };
  copy(0);
  copy(1);
  const int m0 = threadIdx.x / 32 * 16;
  WarpRows<kHeadDim, KvDtype::kBf16> state(p, rows, m0);
  // Later keys are hidden from all rows of this warp.
  const int last = rows.position_of(min(m0 + 15, rows.count - 1));
  for (int n = 0; item.key_begin + n * ManyRows::kRoundKeys < item.key_end; ++n) {
    WaitCopies<1>();
    __syncthreads();  // this round is there, and all warps have read the last one
    copy(n + 2);
    const int key0 = item.key_begin + n * ManyRows::kRoundKeys;
    if (m0 < rows.count && key0 <= last) {
      state.template Add<ManyRows::kGroups>(shared_memory + n % kBuffers * kRoundBytes<kHeadDim>,
                                            key0, item.key_end, p);
    }
  }
  WaitCopies<0>();
  LeaveRows(p, item, rows, m0, state);
}

template <int kHeadDim>
cudaError_t Launch(const AttentionParams& p, int items, int grid_parts, cudaStream_t stream) {
  static_assert(kBuffers * kRoundBytes<kHeadDim> <= kMostShared86);
  return LaunchKernel(ManyRowsAttention<kHeadDim>, dim3(items, grid_parts), ManyRows::kThreads,
                      kBuffers * kRoundBytes<kHeadDim>, stream, p);
}

}  // namespace

cudaError_t LaunchManyRowsAttention(const AttentionParams& p, KvDtype dtype, int items,
                                    int grid_parts, cudaStream_t stream) {
  if (p.tile_rows != ManyRows::kRows) return cudaErrorInvalidValue;
  if (kvstore::HasScales(dtype)) return LaunchManyRowsCodes(p, dtype, items, grid_parts, stream);
  if (dtype != KvDtype::kBf16) return cudaErrorInvalidValue;
  if (p.head_dim == 64) return Launch<64>(p, items, grid_parts, stream);
  if (p.head_dim == 128) return Launch<128>(p, items, grid_parts, stream);
  return cudaErrorInvalidValue;
}

}  // namespace loopserve::worker::cuda
