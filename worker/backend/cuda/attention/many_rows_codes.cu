// Prefill attention over keys of int8 or E4M3: each round of 64 keys arrives as codes of a byte, is
// made bf16 once for all warps, a round before it is used, and is computed on as bf16 with scales.
#include "worker/backend/cuda/attention/many_rows.cuh"
#include "worker/backend/cuda/attention/shared_memory.cuh"

namespace loopserve::worker::cuda {
namespace {

template <int kHeadDim, KvDtype kDtype>
struct Rounds {
  using Bytes = Group<kHeadDim, kDtype>;
  using Ready = Group<kHeadDim, KvDtype::kBf16, true>;
  static constexpr int kByteRound = ManyRows::kGroups * Bytes::kBytes;
  static constexpr int kReadyRound = ManyRows::kGroups * Ready::kBytes;
  static constexpr int kShared = 2 * (kByteRound + kReadyRound);

  // Two of each, in turn.
  static __device__ unsigned char* BytesOf(unsigned char* shared, int n) {
    return shared + n % 2 * kByteRound;
  }
  static __device__ unsigned char* ReadyOf(unsigned char* shared, int n) {
    return shared + 2 * kByteRound + n % 2 * kReadyRound;
  }
};

// Four codes as four bf16 in their order.
template <KvDtype kDtype>
__device__ uint2 WordToBf16(uint32_t word) {
  const uint32_t even = EvenToBf16<kDtype>(word);
  const uint32_t odd = OddToBf16<kDtype>(word);
  return make_uint2((even & 0xffffu) | odd << 16, even >> 16 | (odd & 0xffff0000u));
}

// All threads: one round.
template <int kHeadDim, KvDtype kDtype>
__device__ void Convert(const unsigned char* from, unsigned char* to) {
  using Bytes = typename Rounds<kHeadDim, kDtype>::Bytes;
  using Ready = typename Rounds<kHeadDim, kDtype>::Ready;
  constexpr int kSide = kGroupKeys * Bytes::kChunks;  // chunks of one side of a group
#pragma unroll
  for (int i = threadIdx.x; i < ManyRows::kGroups * 2 * kSide; i += ManyRows::kThreads) {
    const int group = i / (2 * kSide);
    const int side = i / kSide % 2;
    const int key = i / Bytes::kChunks % kGroupKeys;
    const int chunk = i % Bytes::kChunks;
    const auto* bytes =
        reinterpret_cast<const uint4*>(from + group * Bytes::kBytes + side * Bytes::kSideBytes);
    auto* ready = reinterpret_cast<uint4*>(to + group * Ready::kBytes + side * Ready::kSideBytes);
    const uint4 words =
        bytes[side == 0 ? Bytes::KeyChunk(key, chunk) : Bytes::ValueChunk(key, chunk)];
    const uint2 a = WordToBf16<kDtype>(words.x);
    const uint2 b = WordToBf16<kDtype>(words.y);
    const uint2 c = WordToBf16<kDtype>(words.z);
    const uint2 d = WordToBf16<kDtype>(words.w);
    const int first = 2 * chunk;
    ready[side == 0 ? Ready::KeyChunk(key, first) : Ready::ValueChunk(key, first)] =
        make_uint4(a.x, a.y, b.x, b.y);
    ready[side == 0 ? Ready::KeyChunk(key, first + 1) : Ready::ValueChunk(key, first + 1)] =
        make_uint4(c.x, c.y, d.x, d.y);
  }
  constexpr int kScales = 2 * kGroupKeys;  // of a group
  if (threadIdx.x < ManyRows::kGroups * kScales) {
    const int group = threadIdx.x / kScales;
    const int at = threadIdx.x % kScales * 4;
    *reinterpret_cast<float*>(to + group * Ready::kBytes + 2 * Ready::kSideBytes + at) =
        *reinterpret_cast<const float*>(from + group * Bytes::kBytes + 2 * Bytes::kSideBytes + at);
  }
}

template <int kHeadDim, KvDtype kDtype>
__global__ void __launch_bounds__(ManyRows::kThreads, 1) ManyRowsCodes(AttentionParams p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  using R = Rounds<kHeadDim, kDtype>;
  const AttentionItem item = p.items[blockIdx.x];
  if (item.rows == 0) return;
  const PackedRows rows =
      RowsOf(p, item.sequence, item.first_row, item.rows, static_cast<int>(blockIdx.y));
  const uint32_t* blocks = p.sequences.blocks + p.sequences.first_block[item.sequence];
  const auto copy = [&](int n) {
    CopyRound<kHeadDim, kDtype>(p, item, blocks, rows.kv_head, n, R::BytesOf(shared_memory, n));
  };
  copy(0);
  copy(1);
  const int m0 = threadIdx.x / 32 * 16;
  WarpRows<kHeadDim, KvDtype::kBf16, true> state(p, rows, m0);
  const int last = rows.position_of(min(m0 + 15, rows.count - 1));
  WaitCopies<1>();
  __syncthreads();
  Convert<kHeadDim, kDtype>(R::BytesOf(shared_memory, 0), R::ReadyOf(shared_memory, 0));
  const int rounds =
      (item.key_end - item.key_begin + ManyRows::kRoundKeys - 1) / ManyRows::kRoundKeys;
  for (int n = 0; n < rounds; ++n) {
    WaitCopies<0>();
    // This round is ready, the next one's bytes are there, and those of this one have been read, as
    // has what was ready before.
    __syncthreads();
    copy(n + 2);
    if (n + 1 < rounds) {
      Convert<kHeadDim, kDtype>(R::BytesOf(shared_memory, n + 1), R::ReadyOf(shared_memory, n + 1));
    }
    const int key0 = item.key_begin + n * ManyRows::kRoundKeys;
    if (m0 < rows.count && key0 <= last) {
      state.template Add<ManyRows::kGroups>(R::ReadyOf(shared_memory, n), key0, item.key_end, p);
    }
  }
  WaitCopies<0>();
  LeaveRows(p, item, rows, m0, state);
}

template <int kHeadDim, KvDtype kDtype>
cudaError_t Launch(const AttentionParams& p, int items, int grid_parts, cudaStream_t stream) {
  static_assert(Rounds<kHeadDim, kDtype>::kShared <= kMostShared86);
  return LaunchKernel(ManyRowsCodes<kHeadDim, kDtype>, dim3(items, grid_parts), ManyRows::kThreads,
                      Rounds<kHeadDim, kDtype>::kShared, stream, p);
}

template <KvDtype kDtype>
cudaError_t Launch(const AttentionParams& p, int items, int grid_parts, cudaStream_t stream) {
  if (p.head_dim == 64) return Launch<64, kDtype>(p, items, grid_parts, stream);
  if (p.head_dim == 128) return Launch<128, kDtype>(p, items, grid_parts, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchManyRowsCodes(const AttentionParams& p, KvDtype dtype, int items, int grid_parts,
                                cudaStream_t stream) {
  return dtype == KvDtype::kInt8 ? Launch<KvDtype::kInt8>(p, items, grid_parts, stream)
                                 : Launch<KvDtype::kFp8>(p, items, grid_parts, stream);
}

}  // namespace loopserve::worker::cuda
