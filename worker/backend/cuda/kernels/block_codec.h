// The int8 codec of KV blocks on the device: bf16 blocks <-> the payloads that the codec of
// kvstore/codec/int8.cc makes of them, bit for bit.
//
// A payload holds, for each [layer][K, V][kv_head], the scales [tokens] of f32 and then the values
// [tokens][head_dim] of int8; value = code * scale. Payloads of several blocks lie in a staging
// buffer, a stride apart. With tensor parallelism these are the payloads of one rank's heads.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvstore/kv_shape.h"

namespace loopserve::worker::cuda {

struct Int8Block {
  std::byte* block = nullptr;  // device memory
  int32_t tokens = 0;          // the first that count; 1 ... block_tokens
};

struct BlockCodecArgs {
  kvstore::KvShape shape;             // of bf16; head_dim a multiple of 4
  std::span<const Int8Block> blocks;  // in host memory, free again when the call returns
  std::byte* payloads = nullptr;      // [blocks] in device memory; aligned to 4 bytes
  size_t payload_stride = 0;          // at least Int8PayloadBytes; a multiple of 4
  // [blocks] in device or pinned memory, zeros: becomes 1 when the block has no encoding because a
  // value is not finite, or when a scale of the payload is none.
  uint32_t* damaged = nullptr;
};

// More take more than one launch.
inline constexpr size_t kInt8BlocksPerLaunch = 32;

// What the kernels get of BlockCodecArgs, for the blocks of one launch.
struct Int8Launch {
  std::byte* blocks[kInt8BlocksPerLaunch] = {};
  int32_t tokens[kInt8BlocksPerLaunch] = {};
  std::byte* payloads = nullptr;
  size_t payload_stride = 0;
  uint32_t* damaged = nullptr;
  size_t head_bytes = 0;  // of a block
  int32_t head_dim = 0;
};

// Bytes of one head's keys or values in a payload.
constexpr size_t Int8HeadBytes(const kvstore::KvShape& shape, int32_t tokens) {
  return size_t(tokens) * (sizeof(float) + size_t(shape.head_dim));
}
// Bytes of one block's payload.
constexpr size_t Int8PayloadBytes(const kvstore::KvShape& shape, int32_t tokens) {
  return size_t(shape.layers) * 2 * size_t(shape.kv_heads) * Int8HeadBytes(shape, tokens);
}
// Whether the kernels know such blocks.
constexpr bool Int8Codes(const kvstore::KvShape& shape) {
  constexpr int32_t kValuesAtOnce = 4;
  return shape.dtype == kvstore::KvDtype::kBf16 && shape.head_dim > 0 &&
         shape.head_dim % kValuesAtOnce == 0;
}

// Reads blocks, writes payloads. cudaErrorInvalidValue for what the comments above exclude.
cudaError_t LaunchInt8EncodeBlocks(const BlockCodecArgs& args, cudaStream_t stream);
// Reads payloads, writes the first `tokens` slots of blocks.
cudaError_t LaunchInt8DecodeBlocks(const BlockCodecArgs& args, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
