// What the kernels for 128 packed rows share: eight warps, 16 rows to each, and keys in rounds of
// 64 that all warps read.
#pragma once

#include "worker/backend/cuda/attention/copy_group.cuh"

namespace loopserve::worker::cuda {

struct ManyRows {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kGroups = 4;  // of keys, in a round
  static constexpr int kRoundKeys = kGroups * kGroupKeys;
};

// Starts the copies of round `n` of an item, two warps to a group; those of no round are nothing.
// Ends a group of copies in any case, so that counts agree.
template <int kHeadDim, KvDtype kDtype>
__device__ void CopyRound(const AttentionParams& p, const AttentionItem& item,
                          const uint32_t* blocks, int kv_head, int n, unsigned char* round) {
  static_assert(ManyRows::kWarps == 2 * ManyRows::kGroups);
  const int group = threadIdx.x / 64;
  const int key = item.key_begin + n * ManyRows::kRoundKeys + group * kGroupKeys;
  if (item.key_begin + n * ManyRows::kRoundKeys < item.key_end) {
    // A group behind the end becomes zeros; its block may not exist.
    const GroupSource source =
        key < item.key_end ? SourceOf(p.arena, blocks, key) : GroupSource{0, 0};
    CopyGroup<kHeadDim, kDtype, 64>(p.arena, kv_head, source, item.key_end - key, threadIdx.x % 64,
                                    round + group * Group<kHeadDim, kDtype>::kBytes);
  }
  CommitCopies();
}

// A warp's results to where they belong.
template <class Rows>
__device__ void LeaveRows(const AttentionParams& p, const AttentionItem& item,
                          const PackedRows& rows, int m0, const Rows& state) {
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
          p.sums[at * p.head_dim + d] = state.sum(t, e);
        }
      }
    }
    if (item.slot >= 0 && lane % 4 == 0) p.norms[at] = make_float2(state.highest(h), total);
  }
}

// For codes of a byte.
cudaError_t LaunchManyRowsCodes(const AttentionParams& p, KvDtype dtype, int items, int grid_parts,
                                cudaStream_t stream);

}  // namespace loopserve::worker::cuda
