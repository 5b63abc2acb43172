// The shape of paged KV: how many bytes a block has and where each vector lies in it.
//
// A *block* holds the keys and values of `block_tokens` consecutive tokens for all layers and all
// KV heads of one shard. Its layout, the same on every device, is
//
//     [layers][2: K, V][kv_heads][block_tokens][head_dim]     of `dtype`
//
// so the keys of one layer and head are contiguous, which is what attention kernels stream. With
// tensor parallelism each rank holds the same block for its own range of heads; the *logical* block
// (all heads) is what crosses a tier, so that a cache written with --tp 3 restores with --tp 1.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loopserve::kvstore {

enum class KvDtype : uint8_t {
  kBf16 = 1,
  kF32 = 2,  // for comparisons with a reference only: it is never stored in a tier
};

constexpr size_t DtypeBytes(KvDtype dtype) { return dtype == KvDtype::kBf16 ? 2 : 4; }

enum class KvSide : uint8_t { kKey = 0, kValue = 1 };

struct KvShape {
  int32_t layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t block_tokens = 32;
  KvDtype dtype = KvDtype::kBf16;

  bool operator==(const KvShape&) const = default;

  // Bytes of one head's vectors in a block: [block_tokens, head_dim].
  constexpr size_t head_bytes() const {
    return size_t(block_tokens) * size_t(head_dim) * DtypeBytes(dtype);
  }
  constexpr size_t block_bytes() const {
    return size_t(layers) * 2 * size_t(kv_heads) * head_bytes();
  }
  constexpr size_t token_bytes() const { return block_bytes() / size_t(block_tokens); }
  // Byte offset inside a block of the keys or values of (layer, kv_head).
  constexpr size_t offset(int32_t layer, KvSide side, int32_t kv_head) const {
    return ((size_t(layer) * 2 + size_t(side)) * size_t(kv_heads) + size_t(kv_head)) * head_bytes();
  }
  constexpr int64_t blocks_for(int64_t tokens) const {
    return (tokens + block_tokens - 1) / block_tokens;
  }
};

}  // namespace loopserve::kvstore
