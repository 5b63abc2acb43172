// Asynchronous copies of groups of keys and values from the arena to shared memory.
#pragma once

#include "worker/backend/cuda/attention/mma_tile.cuh"

namespace loopserve::worker::cuda {

// A group's place in the arena: 16 keys that lie in one block, whose vectors are contiguous.
struct GroupSource {
  size_t block_offset;
  int slot;  // of the first key in the block
};

__device__ inline GroupSource SourceOf(const ArenaLayout& arena, const uint32_t* blocks, int key) {
  return {BlockOffset(arena, blocks, key), key % arena.block_tokens};
}

// Starts the copies of one group, whose first `keys` exist; zeros behind them. Called by
// kThreads threads, this one `thread` of them.
template <int kHeadDim, KvDtype kDtype, int kThreads>
__device__ void CopyGroup(const ArenaLayout& arena, int kv_head, const GroupSource& from, int keys,
                          int thread, unsigned char* group) {
  using G = Group<kHeadDim, kDtype>;
  const size_t head = from.block_offset + kv_head * arena.head_bytes;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const std::byte* vectors = arena.base[side] + head + size_t(from.slot) * G::kVectorBytes;
    unsigned char* to = group + side * G::kSideBytes;
#pragma unroll
    for (int i = thread; i < kGroupKeys * G::kChunks; i += kThreads) {
      const int key = i / G::kChunks;
      const int chunk = i % G::kChunks;
      const int at = side == 0 ? G::KeyChunk(key, chunk) : G::ValueChunk(key, chunk);
      CopyAsync(to + at * 16, vectors + i * 16, key < keys);
    }
  }
  if constexpr (kvstore::HasScales(kDtype)) {
    constexpr int kScaleChunks = kGroupKeys * 4 / 16;
    if (thread < 2 * kScaleChunks) {
      const int side = thread / kScaleChunks;
      const int chunk = thread % kScaleChunks;
      const std::byte* scales = (side == 0 ? arena.base[0] : arena.base[1]) + head +
                                arena.scale_offset + size_t(from.slot) * 4;
      CopyAsync(group + 2 * G::kSideBytes + thread * 16, scales + chunk * 16, chunk * 4 < keys);
    }
  }
}

}  // namespace loopserve::worker::cuda
