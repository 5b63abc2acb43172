// Random keys and values in a paged arena, and attention over them by its definition, in doubles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <numeric>
#include <random>
#include <vector>

#include "kvstore/block_pool.h"
#include "kvstore/scaled_vector.h"
#include "worker/backend/attention_plan.h"
#include "worker/backend/cpu/attention/attention.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cpu_attention {

// The instruction sets that can be tested here; says loudly which cannot.
inline std::vector<AttentionIsa> TestableIsas() {
  std::vector<AttentionIsa> isas;
  for (const AttentionIsa isa : kAttentionIsas) {
    if (Available(isa)) {
      isas.push_back(isa);
    } else {
      std::cerr << "*** NOT TESTED: this machine does not run " << Name(isa) << " ***\n";
    }
  }
  return isas;
}

// Every instruction set gets queries that none of them rounds.
inline std::vector<float> RoundedToBf16(std::vector<float> values) {
  for (float& value : values) value = Bf16ToFloat(FloatToBf16(value));
  return values;
}

// How far an output may be off because softmax weights are rounded, with int8 queries too.
inline double WeightRounding(AttentionIsa isa, kvstore::KvDtype dtype) {
  if (isa != AttentionIsa::kAvx512Bf16) return 0;
  return dtype == kvstore::KvDtype::kBf16 ? 0.012 : dtype == kvstore::KvDtype::kInt8 ? 0.001 : 0;
}

// One sequence whose blocks lie scattered; what no token uses is filled with NaN.
class PagedKv {
 public:
  PagedKv(const kvstore::KvShape& shape, int64_t tokens, uint32_t seed)
      : tokens_(tokens), random_(seed) {
    arena_.shape = shape;
    const auto used = static_cast<uint32_t>(shape.blocks_for(tokens));
    arena_.num_blocks = used + 3;
    bytes_.assign(arena_.num_blocks * shape.block_bytes(), std::byte{0xff});
    arena_.base = bytes_.data();
    std::vector<uint32_t> ids(arena_.num_blocks);
    std::iota(ids.begin(), ids.end(), 0u);
    std::shuffle(ids.begin(), ids.end(), random_);
    for (uint32_t b = 0; b < used; ++b) blocks_.push_back(common::BlockId(ids[b]));
    for (int32_t layer = 0; layer < shape.layers; ++layer) {
      for (int32_t head = 0; head < shape.kv_heads; ++head) Fill(layer, head);
    }
  }

  const kvstore::KvArena& arena() const { return arena_; }
  const std::vector<common::BlockId>& blocks() const { return blocks_; }
  int64_t tokens() const { return tokens_; }
  std::mt19937& random() { return random_; }

  std::vector<float> Random(size_t count, float spread) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }

  double Get(int32_t layer, kvstore::KvSide side, int32_t head, int64_t position, int32_t i) const {
    const kvstore::KvShape& shape = arena_.shape;
    const std::byte* of_head = HeadAt(layer, side, head, position);
    const auto slot = static_cast<size_t>(position % shape.block_tokens);
    const std::byte* at = of_head + shape.vector_offset(slot) +
                          static_cast<size_t>(i) * kvstore::DtypeBytes(shape.dtype);
    float value = 0;
    switch (shape.dtype) {
      case kvstore::KvDtype::kF32:
        std::memcpy(&value, at, sizeof value);
        return value;
      case kvstore::KvDtype::kBf16: {
        uint16_t bits;
        std::memcpy(&bits, at, sizeof bits);
        return Bf16ToFloat(bits);
      }
      case kvstore::KvDtype::kInt8:
      case kvstore::KvDtype::kFp8: {
        float scale;
        std::memcpy(&scale, of_head + shape.scale_offset(slot), sizeof scale);
        kvstore::DecodeVector(shape.dtype, at, 1, 1.0f, &value);
        return double{scale} * value;
      }
    }
    return NAN;
  }

  // The attention of one head's query over the keys listed.
  std::vector<double> Define(const float* q, int32_t layer, int32_t head, double scale,
                             const std::vector<int64_t>& keys) const {
    const int32_t dim = arena_.shape.head_dim;
    std::vector<double> scores;
    for (const int64_t j : keys) {
      double score = 0;
      for (int32_t i = 0; i < dim; ++i) {
        score += double{q[i]} * Get(layer, kvstore::KvSide::kKey, head, j, i);
      }
      scores.push_back(score * scale);
    }
    std::vector<double> out(static_cast<size_t>(dim), 0.0);
    if (keys.empty()) return out;
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (size_t n = 0; n < keys.size(); ++n) {
      const double weight = std::exp(scores[n] - top);
      total += weight;
      for (int32_t i = 0; i < dim; ++i) {
        out[static_cast<size_t>(i)] +=
            weight * Get(layer, kvstore::KvSide::kValue, head, keys[n], i);
      }
    }
    for (double& value : out) value /= total;
    return out;
  }

  // An item of rows [first, first + rows) of `group` heads, densely.
  AttentionItem Item(int32_t layer, int32_t head, int32_t group, int64_t first,
                     int64_t rows) const {
    const kvstore::KvShape& shape = arena_.shape;
    AttentionItem item;
    item.rows = static_cast<int32_t>(rows);
    item.group = group;
    item.head_dim = shape.head_dim;
    item.scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
    item.first_position = first;
    item.arena = arena_.base;
    item.blocks = blocks_.data();
    item.block_bytes = shape.block_bytes();
    item.key_offset = shape.offset(layer, kvstore::KvSide::kKey, head);
    item.value_offset = shape.offset(layer, kvstore::KvSide::kValue, head);
    item.block_tokens = shape.block_tokens;
    item.vector_bytes = shape.vector_bytes();
    item.scale_offset = shape.scale_offset(0);
    item.dtype = shape.dtype;
    return item;
  }

 private:
  std::byte* HeadAt(int32_t layer, kvstore::KvSide side, int32_t head, int64_t position) const {
    const kvstore::KvShape& shape = arena_.shape;
    return arena_.block(blocks_[static_cast<size_t>(position / shape.block_tokens)]) +
           shape.offset(layer, side, head);
  }

  void Store(const std::vector<float>& values, size_t slot, std::byte* head) const {
    const kvstore::KvShape& shape = arena_.shape;
    std::byte* at = head + shape.vector_offset(slot);
    if (kvstore::HasScales(shape.dtype)) {
      const float scale = kvstore::EncodeVector(shape.dtype, values.data(), values.size(), at);
      std::memcpy(head + shape.scale_offset(slot), &scale, sizeof scale);
    } else if (shape.dtype == kvstore::KvDtype::kF32) {
      std::memcpy(at, values.data(), values.size() * sizeof(float));
    } else {
      for (size_t i = 0; i < values.size(); ++i) {
        const uint16_t bits = FloatToBf16(values[i]);
        std::memcpy(at + 2 * i, &bits, sizeof bits);
      }
    }
  }

  void Fill(int32_t layer, int32_t head) {
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> values(static_cast<size_t>(arena_.shape.head_dim));
    for (const kvstore::KvSide side : {kvstore::KvSide::kKey, kvstore::KvSide::kValue}) {
      for (int64_t p = 0; p < tokens_; ++p) {
        for (float& value : values) value = normal(random_);
        Store(values, static_cast<size_t>(p % arena_.shape.block_tokens),
              HeadAt(layer, side, head, p));
      }
    }
  }

  const int64_t tokens_;
  std::mt19937 random_;
  kvstore::KvArena arena_;
  std::vector<std::byte> bytes_;
  std::vector<common::BlockId> blocks_;
};

}  // namespace loopserve::worker::cpu_attention
