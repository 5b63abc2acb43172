// Attention for every head_dim up to 256, every dtype and alignment: f32 arithmetic throughout.
//
// A thread block has eight warps. They load 32 keys and values as f32 into shared memory; then each
// warp computes its own kRows packed rows: lane j has the score of key j, lane d sums of
// dimensions d, d + 32 ... of the output.
#include "worker/backend/cuda/attention/params.cuh"
#include "worker/backend/cuda/attention/shared_memory.cuh"

namespace loopserve::worker::cuda {
namespace {

using kvstore::KvDtype;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kKeys = 32;  // per round, one per lane
constexpr unsigned kAll = 0xffffffffu;

// Dynamic shared memory, in floats. Rows of queries and values are padded to a multiple of four
// dimensions, which are zeros; rows of keys to four more, so that the lanes' float4 loads of
// different keys meet different banks.
struct Layout {
  int width;
  int key_width;
  int rows;
  __host__ __device__ constexpr Layout(int head_dim, int tile_rows)
      : width((head_dim + 3) / 4 * 4), key_width(width + 4), rows(tile_rows) {}
  __host__ __device__ constexpr int keys() const { return rows * width; }
  __host__ __device__ constexpr int values() const { return keys() + kKeys * key_width; }
  __host__ __device__ constexpr int weights() const { return values() + kKeys * width; }
  __host__ __device__ constexpr int floats() const { return weights() + rows * kKeys; }
};
// A head_dim of 256 and four rows to a warp are just beyond what 8.6 and 8.9 have.
static_assert(size_t{4} * Layout(256, 4 * kWarps).floats() <= kMostShared80);
static_assert(size_t{4} * Layout(128, 4 * kWarps).floats() <= kMostShared86);
static_assert(size_t{4} * Layout(256, kWarps).floats() <= kMostShared86);

template <KvDtype kDtype>
__device__ float LoadValue(const std::byte* vector, int i) {
  if constexpr (kDtype == KvDtype::kF32) {
    return reinterpret_cast<const float*>(vector)[i];
  } else if constexpr (kDtype == KvDtype::kBf16) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(vector)[i]);
  } else if constexpr (kDtype == KvDtype::kInt8) {
    return float(reinterpret_cast<const int8_t*>(vector)[i]);
  } else {
    // E4M3, as kernels/e4m3_to_bf16.cuh has two. The byte's sign fills the bits above it.
    const int code = reinterpret_cast<const int8_t*>(vector)[i];
    return __uint_as_float(static_cast<uint32_t>(code << 20) & 0x87f00000u) * 0x1p120f;
  }
}

// The scale of a vector, which may be unaligned.
template <KvDtype kDtype>
__device__ float LoadScale(const std::byte* at) {
  if constexpr (!kvstore::HasScales(kDtype)) {
    return 1.0f;
  } else {
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits |= uint32_t(at[i]) << (8 * i);
    return __uint_as_float(bits);
  }
}

// One side's vectors of keys key0 ... key0 + count - 1, zeros behind them.
template <KvDtype kDtype>
__device__ void LoadSide(const AttentionParams& p, const uint32_t* blocks, int side, int kv_head,
                         int key0, int count, float* to, int width, int padded) {
  constexpr size_t kBytes = kvstore::DtypeBytes(kDtype);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < kKeys / kWarps; ++n) {
    const int j = n * kWarps + threadIdx.x / 32;
    float* row = to + j * width;
    if (j >= count) {
      for (int d = lane; d < padded; d += 32) row[d] = 0;
      continue;
    }
    const int slot = (key0 + j) % p.arena.block_tokens;
    const std::byte* head = (side == 0 ? p.arena.base[0] : p.arena.base[1]) +
                            BlockOffset(p.arena, blocks, key0 + j) + kv_head * p.arena.head_bytes;
    const std::byte* vector = head + size_t(slot) * p.head_dim * kBytes;
    const float scale = LoadScale<kDtype>(head + p.arena.scale_offset + size_t(slot) * 4);
#pragma unroll 4
    for (int d = lane; d < padded; d += 32) {
      row[d] = d < p.head_dim ? LoadValue<kDtype>(vector, d) * scale : 0.0f;
    }
  }
}

__device__ void LoadQueries(const AttentionParams& p, const PackedRows& rows, float* to,
                            int width) {
  for (int m = threadIdx.x / 32; m < rows.count; m += kWarps) {
    const int64_t at = QueryIndex(p, rows, m);
    for (int d = threadIdx.x % 32; d < width; d += 32) {
      to[m * width + d] =
          d < p.head_dim ? LoadActivation(p.q, p.q_type, at + d) * p.scale_log2 : 0.0f;
    }
  }
}

__device__ float MaxOfWarp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

__device__ float SumOfWarp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// A warp's rows.
template <int kRows, int kDims>
struct State {
  float sums[kRows][kDims];
  float highest[kRows];
  float total[kRows];

  __device__ void Clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      highest[r] = -INFINITY;
      total[r] = 0;
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums[r][i] = 0;
    }
  }
};

// Lane j: the scores of key j for the warp's rows, first packed row `m0`.
template <int kRows>
__device__ void Scores(const float* queries, const float* keys, const Layout& layout, int m0,
                       float* scores) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) scores[r] = 0;
  const auto* key = reinterpret_cast<const float4*>(keys + threadIdx.x % 32 * layout.key_width);
  const auto* query = reinterpret_cast<const float4*>(queries + m0 * layout.width);
  const int steps = layout.width / 4;
  for (int d = 0; d < steps; ++d) {
    const float4 k = key[d];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float4 q = query[r * steps + d];
      scores[r] = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, fmaf(q.w, k.w, scores[r]))));
    }
  }
}

// Scores to weights, which go to shared memory; rescales what was summed so far.
template <int kRows, int kDims>
__device__ void Weigh(const PackedRows& rows, int m0, int key, bool key_exists, int window,
                      const float* scores, float* weights, State<kRows, kDims>& state) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool seen = key_exists && Sees(rows.position_of(m0 + r), key, window);
    const float score = seen ? scores[r] : -INFINITY;
    const float highest = fmaxf(state.highest[r], MaxOfWarp(score));
    const float reference = highest == -INFINITY ? 0.0f : highest;
    const float weight = seen ? exp2f(score - reference) : 0.0f;
    const float keep = exp2f(state.highest[r] - reference);
    state.highest[r] = highest;
    state.total[r] = state.total[r] * keep + SumOfWarp(weight);
#pragma unroll
    for (int i = 0; i < kDims; ++i) state.sums[r][i] *= keep;
    weights[(m0 + r) * kKeys + threadIdx.x % 32] = weight;
  }
}

template <int kRows, int kDims>
__device__ void AddValues(const float* values, const float* weights, const Layout& layout, int m0,
                          State<kRows, kDims>& state) {
  const int lane = threadIdx.x % 32;
  for (int j = 0; j < kKeys; ++j) {
    float weight[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) weight[r] = weights[(m0 + r) * kKeys + j];
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int d = lane + 32 * i;
      const float value = d < layout.width ? values[j * layout.width + d] : 0.0f;
#pragma unroll
      for (int r = 0; r < kRows; ++r) state.sums[r][i] = fmaf(weight[r], value, state.sums[r][i]);
    }
  }
}

template <int kRows, int kDims>
__device__ void Leave(const AttentionParams& p, const AttentionItem& item, const PackedRows& rows,
                      int m0, const State<kRows, kDims>& state) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int m = m0 + r;
    if (m >= rows.count) return;
    const float normalizer = Normalizer(state.total[r]);
    const int64_t partial =
        item.slot < 0 ? 0 : PartialIndex(p, item.slot, blockIdx.y, gridDim.y, m);
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int d = lane + 32 * i;
      if (d >= p.head_dim) continue;
      if (item.slot < 0) {
        StoreOut(p, rows, m, d, state.sums[r][i] * normalizer);
      } else {
        p.sums[partial * p.head_dim + d] = state.sums[r][i];
      }
    }
    if (item.slot >= 0 && lane == 0) {
      p.norms[partial] = make_float2(state.highest[r], state.total[r]);
    }
  }
}

template <KvDtype kDtype, int kRows, int kDims>
__global__ void __launch_bounds__(kThreads) GenericAttention(AttentionParams p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const AttentionItem item = p.items[blockIdx.x];
  if (item.rows == 0) return;
  const PackedRows rows =
      RowsOf(p, item.sequence, item.first_row, item.rows, static_cast<int>(blockIdx.y));
  const Layout layout(p.head_dim, p.tile_rows);
  auto* queries = reinterpret_cast<float*>(shared_memory);
  float* keys = queries + layout.keys();
  float* values = queries + layout.values();
  float* weights = queries + layout.weights();
  const uint32_t* blocks = p.sequences.blocks + p.sequences.first_block[item.sequence];
  LoadQueries(p, rows, queries, layout.width);
  const int m0 = threadIdx.x / 32 * kRows;
  State<kRows, kDims> state;
  state.Clear();
  for (int key0 = item.key_begin; key0 < item.key_end; key0 += kKeys) {
    const int count = min(kKeys, item.key_end - key0);
    __syncthreads();  // the last round's keys and values were read
    LoadSide<kDtype>(p, blocks, 0, rows.kv_head, key0, count, keys, layout.key_width, layout.width);
    LoadSide<kDtype>(p, blocks, 1, rows.kv_head, key0, count, values, layout.width, layout.width);
    __syncthreads();
    if (m0 >= rows.count) continue;
    const int lane = threadIdx.x % 32;
    float scores[kRows];
    Scores<kRows>(queries, keys, layout, m0, scores);
    Weigh(rows, m0, key0 + lane, lane < count, p.window, scores, weights, state);
    __syncwarp();  // a warp's weights are its own
    AddValues(values, weights, layout, m0, state);
  }
  Leave(p, item, rows, m0, state);
}

template <KvDtype kDtype, int kRows>
AttentionKernel KernelOf(int head_dim) {
  if (head_dim <= 64) return GenericAttention<kDtype, kRows, 2>;
  if (head_dim <= 128) return GenericAttention<kDtype, kRows, 4>;
  return GenericAttention<kDtype, kRows, 8>;
}

template <KvDtype kDtype>
AttentionKernel KernelOf(int head_dim, int tile_rows) {
  return tile_rows == kWarps ? KernelOf<kDtype, 1>(head_dim) : KernelOf<kDtype, 4>(head_dim);
}

AttentionKernel KernelOf(KvDtype dtype, int head_dim, int tile_rows) {
  switch (dtype) {
    case KvDtype::kBf16:
      return KernelOf<KvDtype::kBf16>(head_dim, tile_rows);
    case KvDtype::kF32:
      return KernelOf<KvDtype::kF32>(head_dim, tile_rows);
    case KvDtype::kInt8:
      return KernelOf<KvDtype::kInt8>(head_dim, tile_rows);
    case KvDtype::kFp8:
      return KernelOf<KvDtype::kFp8>(head_dim, tile_rows);
  }
  return nullptr;
}

}  // namespace

cudaError_t LaunchGenericAttention(const AttentionParams& p, KvDtype dtype, int items,
                                   int grid_parts, cudaStream_t stream) {
  if (p.head_dim > 256 || (p.tile_rows != kWarps && p.tile_rows != 4 * kWarps)) {
    return cudaErrorInvalidValue;
  }
  const Layout layout(p.head_dim, p.tile_rows);
  return LaunchKernel(KernelOf(dtype, p.head_dim, p.tile_rows), dim3(items, grid_parts), kThreads,
                      size_t(layout.floats()) * sizeof(float), stream, p);
}

}  // namespace loopserve::worker::cuda
