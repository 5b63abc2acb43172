// Blocks and bytes for tests of the KV store: small, deterministic, unlike each other.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "common/ids.h"
#include "kvstore/kv_shape.h"

namespace loopserve::testing {

inline kvstore::KvShape SmallShape() {
  return {.layers = 2, .kv_heads = 3, .head_dim = 8, .block_tokens = 4};
}

inline float Bf16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}
inline uint16_t FloatToBf16(float value) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
}

// Any codes that have a number, and scales some of which are far larger than others.
inline std::vector<std::byte> RandomScaledBlock(const kvstore::KvShape& shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> block(shape.block_bytes());
  constexpr std::byte kMagnitude{0x7f};
  for (std::byte& b : block) {
    b = static_cast<std::byte>(random());
    const bool nan = shape.dtype == kvstore::KvDtype::kFp8 && (b & kMagnitude) == kMagnitude;
    if (nan) b = std::byte{0};
  }
  for (size_t head = 0; head < block.size(); head += shape.head_bytes()) {
    for (size_t slot = 0; slot < static_cast<size_t>(shape.block_tokens); ++slot) {
      const float scale = std::exp(3 * normal(random));
      std::memcpy(block.data() + head + shape.scale_offset(slot), &scale, sizeof scale);
    }
  }
  return block;
}

// A logical block of normal values, some vectors far larger than others.
inline std::vector<std::byte> RandomBlock(const kvstore::KvShape& shape, uint32_t seed) {
  if (kvstore::HasScales(shape.dtype)) return RandomScaledBlock(shape, seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> block(shape.block_bytes());
  float scale = 1;
  for (size_t i = 0; i < block.size() / 2; ++i) {
    if (i % static_cast<size_t>(shape.head_dim) == 0) scale = std::exp(3 * normal(random));
    const uint16_t value = FloatToBf16(scale * normal(random));
    std::memcpy(block.data() + 2 * i, &value, 2);
  }
  return block;
}

inline std::vector<std::byte> RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

inline std::vector<common::TokenId> RandomTokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<common::TokenId> tokens(count);
  for (common::TokenId& t : tokens) t = static_cast<common::TokenId>(random() % 49152);
  return tokens;
}

}  // namespace loopserve::testing
