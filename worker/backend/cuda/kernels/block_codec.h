// The int8 codec of KV blocks on the device: bf16 blocks of an arena <-> the payloads that the
// codec of kvstore/codec/int8.cc makes of them, bit for bit, so that only coded bytes would
// cross the link. Saves and restores do not use it yet: they code on the host.
//
// A payload holds, for each [layer][K, V][kv_head], the scales [tokens] of f32 and then the values
// [tokens][head_dim] of int8; value = code * scale. Payloads of several blocks lie behind each
// other in a staging buffer. With tensor parallelism these are the payloads of one rank's heads.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kvstore/block_pool.h"

namespace loopserve::worker::cuda {

struct BlockCodecArgs {
  kvstore::KvArena arena;            // of bf16; head_dim a multiple of 4
  const uint32_t* blocks = nullptr;  // [count] ids, in device memory
  int32_t count = 0;
  int32_t tokens = 0;             // of each block, the first that count; 1 ... block_tokens
  std::byte* payloads = nullptr;  // [count], Int8PayloadBytes apart; aligned to 4 bytes
  // [count] in device memory, set by the launch: not 0 when the block has no encoding because a
  // value is not finite, or when a scale of the payload is none.
  uint32_t* damaged = nullptr;
};

// Bytes of one block's payload.
constexpr size_t Int8PayloadBytes(const kvstore::KvShape& shape, int32_t tokens) {
  return size_t(shape.layers) * 2 * size_t(shape.kv_heads) * size_t(tokens) *
         (sizeof(float) + size_t(shape.head_dim));
}

// Reads blocks, writes payloads. cudaErrorInvalidValue for what the comments above exclude.
cudaError_t LaunchInt8EncodeBlocks(const BlockCodecArgs& args, cudaStream_t stream);
// Reads payloads, writes the first `tokens` slots of blocks.
cudaError_t LaunchInt8DecodeBlocks(const BlockCodecArgs& args, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
