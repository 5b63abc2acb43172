// The shape of paged KV: how many bytes a block has and where each vector lies in it.
//
// A *block* holds the keys and values of `block_tokens` consecutive tokens for all layers and all
// KV heads of one shard. Its layout, the same on every device, is
//
//     [layers][2: K, V][kv_heads][block_tokens][head_dim]     of `dtype`
//
// so the keys of one layer and head are contiguous, which is what attention kernels stream. With
// kInt8 and kFp8 a head's vectors are followed by their scales, [block_tokens] of f32, right behind
// the last value (unaligned if block_tokens * head_dim is no multiple of 4): scaled_vector.h. With
// tensor parallelism each rank holds the same block for its own range of heads, parts of which
// other ranks may hold too; the *logical* block (every head once) is what crosses a tier, so that a
// cache written with --tp 3 restores with --tp 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace loopserve::kvstore {

enum class KvDtype : uint8_t {
  kBf16 = 1,
  kF32 = 2,   // for comparisons with a reference only: it is never stored in a tier
  kInt8 = 3,  // codes -127 ... 127 and a scale for each vector
  kFp8 = 4,   // codes of E4M3 and a scale for each vector
};
inline constexpr KvDtype kKvDtypes[] = {KvDtype::kBf16, KvDtype::kF32, KvDtype::kInt8,
                                        KvDtype::kFp8};

// Whether values are codes of a byte, and every vector has a scale.
constexpr bool HasScales(KvDtype dtype) {
  return dtype == KvDtype::kInt8 || dtype == KvDtype::kFp8;
}
// Of one value, without its share of a scale.
constexpr size_t DtypeBytes(KvDtype dtype) {
  return HasScales(dtype) ? 1 : dtype == KvDtype::kBf16 ? 2 : 4;
}
// As flags, logs and cache keys name it.
constexpr const char* DtypeName(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kBf16:
      return "bf16";
    case KvDtype::kF32:
      return "f32";
    case KvDtype::kInt8:
      return "int8";
    case KvDtype::kFp8:
      return "fp8";
  }
  return "?";
}

constexpr std::optional<KvDtype> DtypeFromName(absl::string_view name) {
  for (const KvDtype dtype : kKvDtypes) {
    if (name == DtypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

enum class KvSide : uint8_t { kKey = 0, kValue = 1 };

struct KvShape {
  int32_t layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t block_tokens = 32;
  KvDtype dtype = KvDtype::kBf16;

  bool operator==(const KvShape&) const = default;

  // Bytes of one vector's values, which is also from one slot's to the next.
  constexpr size_t vector_bytes() const { return size_t(head_dim) * DtypeBytes(dtype); }
  // Bytes of one vector's scale; 0 when the dtype has none.
  constexpr size_t scale_bytes() const { return HasScales(dtype) ? sizeof(float) : 0; }
  // Byte offsets inside a head's part of a block.
  constexpr size_t vector_offset(size_t slot) const { return slot * vector_bytes(); }
  constexpr size_t scale_offset(size_t slot) const {
    return vector_offset(size_t(block_tokens)) + slot * scale_bytes();
  }
  // Bytes of one head's vectors and scales in a block.
  constexpr size_t head_bytes() const { return scale_offset(size_t(block_tokens)); }
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
