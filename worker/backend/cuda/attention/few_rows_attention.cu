// Decode attention: 16 packed rows against many keys, at the speed of memory.
//
// Each of the block's four warps streams its own groups of 16 keys, every fourth, through its own
// ring of shared memory: copies of the next groups are always under way, and no warp waits for
// another until the end, when the four partial softmaxes are joined in the order of the warps.
#include "worker/backend/cuda/attention/copy_group.cuh"
#include "worker/backend/cuda/attention/shared_memory.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16;

template <int kHeadDim, KvDtype kDtype>
struct Ring {
  static constexpr int kGroupBytes = Group<kHeadDim, kDtype>::kBytes;
  // Two blocks share a multiprocessor: 96 KiB each, 24 KiB a warp.
  static constexpr int kStages = kGroupBytes > 4352 ? 3 : kGroupBytes > 2176 ? 5 : 8;
  static constexpr int kWarpBytes = kStages * kGroupBytes;
  static constexpr int kBytes = kWarps * kWarpBytes;
};

// The joined results of the warps, in the ring's memory once it is drained.
template <int kHeadDim>
struct Joint {
  static constexpr int kStride = kHeadDim + 4;
  float sums[kWarps][kRows][kStride];
  float highest[kWarps][kRows];
  float total[kWarps][kRows];
};

template <int kHeadDim, KvDtype kDtype>
__device__ void Deposit(const WarpRows<kHeadDim, kDtype>& state, int warp, Joint<kHeadDim>& joint) {
  using Rows = WarpRows<kHeadDim, kDtype>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = state.Total(h);
    if (lane % 4 != 0) continue;
    joint.highest[warp][lane / 4 + 8 * h] = state.highest(h);
    joint.total[warp][lane / 4 + 8 * h] = total;
  }
#pragma unroll
  for (int t = 0; t < Rows::kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      joint.sums[warp][lane / 4 + 8 * (e >> 1)][Rows::DimOf(t, e)] = state.sum(t, e);
    }
  }
}

// The sums of all warps to where they belong.
template <int kHeadDim>
__device__ void Leave(const AttentionParams& p, const AttentionItem& item, const PackedRows& rows,
                      const Joint<kHeadDim>& joint) {
  for (int i = threadIdx.x; i < rows.count * kHeadDim; i += kThreads) {
    const int m = i / kHeadDim;
    const int d = i % kHeadDim;
    float highest = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, joint.highest[w][m]);
    const float reference = highest == -INFINITY ? 0.0f : highest;
    float total = 0;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float keep = Exp2(joint.highest[w][m] - reference);
      total = fmaf(keep, joint.total[w][m], total);
      sum = fmaf(keep, joint.sums[w][m][d], sum);
    }
    if (item.slot < 0) {
      StoreOut(p, rows, m, d, sum * Normalizer(total));
      continue;
    }
    const int64_t at = PartialIndex(p, item.slot, blockIdx.y, gridDim.y, m);
    p.sums[at * kHeadDim + d] = sum;
    if (d == 0) p.norms[at] = make_float2(highest, total);
  }
}

// One warp's groups, through its ring.
template <int kHeadDim, KvDtype kDtype>
__device__ void Stream(const AttentionParams& p, const AttentionItem& item, int kv_head, int warp,
                       unsigned char* ring, WarpRows<kHeadDim, kDtype>& state) {
  using R = Ring<kHeadDim, kDtype>;
  constexpr int kAhead = R::kStages - 1;
  const int lane = threadIdx.x % 32;
  const uint32_t* blocks = p.sequences.blocks + p.sequences.first_block[item.sequence];
  const int groups = (item.key_end - item.key_begin + kGroupKeys - 1) / kGroupKeys;
  const int mine = (groups - warp + kWarps - 1) / kWarps;  // 0 or less: none
  const auto key_of = [&](int n) { return item.key_begin + (n * kWarps + warp) * kGroupKeys; };
  const auto copy = [&](int n, const GroupSource& source) {
    if (n < mine) {
      CopyGroup<kHeadDim, kDtype, 32>(p.arena, kv_head, source, item.key_end - key_of(n), lane,
                                      ring + n % R::kStages * R::kGroupBytes);
    }
    CommitCopies();  // an empty group where there is nothing to copy, so that counts agree
  };
  // Where a group lies is looked up one round before it is asked for.
  const auto source_of = [&](int n) {
    return n < mine ? SourceOf(p.arena, blocks, key_of(n)) : GroupSource{};
  };
#pragma unroll
  for (int n = 0; n < kAhead; ++n) copy(n, source_of(n));
  GroupSource next = source_of(kAhead);
  for (int n = 0; n < mine; ++n) {
    __syncwarp();  // all lanes have read the group whose place is taken now
    copy(n + kAhead, next);
    next = source_of(n + kAhead + 1);
    WaitCopies<kAhead>();
    __syncwarp();  // what other lanes copied is there as well
    state.template Add<1>(ring + n % R::kStages * R::kGroupBytes, key_of(n), item.key_end, p);
  }
  WaitCopies<0>();
}

template <int kHeadDim, KvDtype kDtype>
__global__ void __launch_bounds__(kThreads, 2) FewRowsAttention(AttentionParams p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  using R = Ring<kHeadDim, kDtype>;
  static_assert(sizeof(Joint<kHeadDim>) <= R::kBytes);
  const AttentionItem item = p.items[blockIdx.x];
  if (item.rows == 0) return;
  const PackedRows rows =
      RowsOf(p, item.sequence, item.first_row, item.rows, static_cast<int>(blockIdx.y));
  const int warp = threadIdx.x / 32;
  WarpRows<kHeadDim, kDtype> state(p, rows, 0);
  Stream(p, item, rows.kv_head, warp, shared_memory + warp * R::kWarpBytes, state);
  __syncthreads();  // every warp is done with the ring
  auto& joint = *reinterpret_cast<Joint<kHeadDim>*>(shared_memory);
  Deposit(state, warp, joint);
  __syncthreads();
  Leave(p, item, rows, joint);
}

template <int kHeadDim, KvDtype kDtype>
cudaError_t Launch(const AttentionParams& p, int items, int grid_parts, cudaStream_t stream) {
  static_assert(Ring<kHeadDim, kDtype>::kBytes <= kMostShared86);
  static_assert(FitTogether90(Ring<kHeadDim, kDtype>::kBytes, 2), "as its launch bounds say");
  return LaunchKernel(FewRowsAttention<kHeadDim, kDtype>, dim3(items, grid_parts), kThreads,
                      Ring<kHeadDim, kDtype>::kBytes, stream, p);
}

template <int kHeadDim>
cudaError_t Launch(const AttentionParams& p, KvDtype dtype, int items, int grid_parts,
                   cudaStream_t stream) {
  switch (dtype) {
    case KvDtype::kBf16:
      return Launch<kHeadDim, KvDtype::kBf16>(p, items, grid_parts, stream);
    case KvDtype::kInt8:
      return Launch<kHeadDim, KvDtype::kInt8>(p, items, grid_parts, stream);
    case KvDtype::kFp8:
      return Launch<kHeadDim, KvDtype::kFp8>(p, items, grid_parts, stream);
    case KvDtype::kF32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchFewRowsAttention(const AttentionParams& p, KvDtype dtype, int items,
                                   int grid_parts, cudaStream_t stream) {
  if (p.tile_rows != kRows) return cudaErrorInvalidValue;
  if (p.head_dim == 64) return Launch<64>(p, dtype, items, grid_parts, stream);
  if (p.head_dim == 128) return Launch<128>(p, dtype, items, grid_parts, stream);
  return cudaErrorInvalidValue;
}

}  // namespace loopserve::worker::cuda
