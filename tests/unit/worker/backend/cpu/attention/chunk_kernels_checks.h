// What every table of chunk kernels must do, checked value by value.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "worker/backend/cpu/attention/chunk_kernels.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cpu_attention {

inline constexpr int kCheckedDims[] = {16, 17, 24, 31, 32, 64, 80, 96, 128};

// Laid-out keys and values are the arena's numbers exactly, and padding is zero.
inline void CheckLoads(const ChunkKernels& kernels) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  for (const int dim : kCheckedDims) {
    for (const bool bf16 : {true, false}) {
      const size_t width = bf16 ? 2 : 4;
      std::vector<std::byte> stored(size_t(kKeyChunk * dim) * width);
      std::vector<float> exact(size_t(kKeyChunk * dim));
      const std::byte* at[kKeyChunk];
      for (int j = 0; j < kKeyChunk; ++j) {
        at[j] = stored.data() + size_t(j * dim) * width;
        for (int i = 0; i < dim; ++i) {
          const float value = normal(random);
          const uint16_t half = FloatToBf16(value);
          std::byte* to = stored.data() + size_t(j * dim + i) * width;
          std::memcpy(to, bf16 ? static_cast<const void*>(&half) : &value, width);
          exact[size_t(j * dim + i)] = bf16 ? Bf16ToFloat(half) : value;
        }
      }
      const int padded = (dim + kDimAlign - 1) / kDimAlign * kDimAlign;
      std::vector<float> keys(size_t(dim * kKeyChunk), NAN);
      std::vector<float> values(size_t(padded * kKeyChunk), NAN);
      kernels.load_keys({at, at, bf16, dim}, keys.data());
      kernels.load_values({at, nullptr, bf16, dim}, padded, values.data());
      for (int j = 0; j < kKeyChunk; ++j) {
        for (int i = 0; i < padded; ++i) {
          const float want = i < dim ? exact[size_t(j * dim + i)] : 0.0f;
          ASSERT_EQ(values[size_t(j * padded + i)], want) << dim << " " << j << " " << i;
          if (i < dim) {
            ASSERT_EQ(keys[size_t(i * kKeyChunk + j)], want) << dim << " " << j;
          }
        }
      }
    }
  }
}

// With one dimension, q = 1 and key j = score j, the weights are seen through the lanes.
inline void CheckWeights(const ChunkKernels& kernels) {
  constexpr int kPadded = kDimAlign;
  std::vector<float> q(kPadded, 0.0f);
  q[0] = 1;
  std::vector<float> values(kKeyChunk * kPadded, 0.0f);
  for (float score = 0; score > -140; score -= 0.37f) {
    std::vector<float> keys(kKeyChunk, score);
    keys[0] = 0;
    for (int j = 0; j < kKeyChunk; ++j) values[size_t(j * kPadded)] = j == 5 ? 1.0f : 0.0f;
    std::vector<float> state(size_t(StateStride(kPadded)), 0.0f);
    state[kPadded + kLanes] = -INFINITY;
    const uint64_t visible = (uint64_t{1} << 5) | 1;
    kernels.attend({1, 1, kPadded, q.data(), &visible, keys.data(), values.data(), state.data()});
    const double weight = score < -126 ? 0 : std::exp2(double{score});
    EXPECT_NEAR(state[0], weight, weight * 3e-7) << score;
    EXPECT_EQ(state[kPadded + kLanes], 0.0f);
    float out = -7;
    kernels.finish(state.data(), 1, kPadded, &out);
    EXPECT_NEAR(out, weight / (1 + weight), weight * 1e-6);
  }
}

// A chunk that a row sees nothing of leaves it alone, and so does a merge with nothing.
inline void CheckNeutrals(const ChunkKernels& kernels) {
  constexpr int kDim = 32;
  constexpr int kRows = 8;
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 1);
  const auto some = [&](int count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random);
    return values;
  };
  const std::vector<float> q = some(kRows * kDim);
  const std::vector<float> keys = some(kDim * kKeyChunk);
  const std::vector<float> values = some(kDim * kKeyChunk);
  const auto stride = size_t(StateStride(kDim));
  std::vector<float> nothing(kRows * stride, 0.0f);
  for (size_t r = 0; r < kRows; ++r) nothing[r * stride + kDim + kLanes] = -INFINITY;
  std::vector<float> state = nothing;
  std::vector<uint64_t> visible(kRows, ~uint64_t{0});
  visible[3] = 0;
  const ChunkStep step{kRows,          kDim,        kDim,          q.data(),
                       visible.data(), keys.data(), values.data(), state.data()};
  kernels.attend(step);
  EXPECT_EQ(0, std::memcmp(&state[3 * stride], &nothing[3 * stride], stride * sizeof(float)));
  std::vector<float> before = state;
  std::fill(visible.begin(), visible.end(), 0);
  visible[1] = 0x8000000000000001;
  kernels.attend(step);
  EXPECT_NE(0, std::memcmp(&state[stride], &before[stride], stride * sizeof(float)));
  std::copy_n(before.begin() + stride, stride, state.begin() + stride);
  EXPECT_EQ(before, state);
  kernels.merge(kRows, kDim, nothing.data(), state.data());
  EXPECT_EQ(before, state);
  kernels.merge(kRows, kDim, before.data(), nothing.data());
  EXPECT_EQ(before, nothing);
}

// The kernel without a laid-out chunk gives the bits of the one with.
inline void CheckStream(const ChunkKernels& kernels) {
  if (kernels.stream == nullptr) GTEST_SKIP() << "has no such kernel";
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 1);
  for (const int dim : {32, 64, 96, 128}) {
    for (int rows = 1; rows <= kStreamRows; ++rows) {
      for (const int count : {1, 2, 17, 63, 64}) {
        std::vector<uint16_t> stored(size_t(2 * kKeyChunk * dim));
        for (uint16_t& value : stored) value = FloatToBf16(normal(random));
        const std::byte* key_at[kKeyChunk];
        const std::byte* value_at[kKeyChunk];
        for (int j = 0; j < kKeyChunk; ++j) {
          key_at[j] = reinterpret_cast<const std::byte*>(&stored[size_t(2 * j * dim)]);
          value_at[j] = reinterpret_cast<const std::byte*>(&stored[size_t((2 * j + 1) * dim)]);
        }
        std::vector<float> q(size_t(rows * dim));
        for (float& value : q) value = normal(random);
        std::vector<uint64_t> visible(size_t(rows), ~uint64_t{0} >> (64 - count));
        visible[0] = 1;
        std::vector<float> keys(size_t(dim * kKeyChunk));
        std::vector<float> values(size_t(dim * kKeyChunk));
        const auto stride = size_t(StateStride(dim));
        std::vector<float> state(size_t(rows) * stride, 0.5f);
        std::vector<float> streamed = state;
        kernels.load_keys({key_at, nullptr, true, dim}, keys.data());
        kernels.load_values({value_at, nullptr, true, dim}, dim, values.data());
        ChunkStep step{rows,           dim,         dim,           q.data(),
                       visible.data(), keys.data(), values.data(), state.data()};
        kernels.attend(step);
        step.state = streamed.data();
        kernels.stream(step, {key_at, key_at, true, dim}, {value_at, value_at, true, dim});
        ASSERT_EQ(0, std::memcmp(state.data(), streamed.data(), state.size() * sizeof(float)))
            << dim << " " << rows << " " << count;
      }
    }
  }
}

// One row over scattered keys is what the tile kernel computes, but for the order of its sums.
inline void CheckGather(const ChunkKernels& kernels) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0, 1);
  for (const int dim : kCheckedDims) {
    for (const int count : {1, 3, 40, 64}) {
      std::vector<uint16_t> stored(size_t(2 * kKeyChunk * dim));
      for (uint16_t& value : stored) value = FloatToBf16(normal(random));
      const std::byte* key_at[kKeyChunk];
      const std::byte* value_at[kKeyChunk];
      for (int j = 0; j < kKeyChunk; ++j) {
        key_at[j] = reinterpret_cast<const std::byte*>(&stored[size_t(2 * j * dim)]);
        value_at[j] = reinterpret_cast<const std::byte*>(&stored[size_t((2 * j + 1) * dim)]);
      }
      const int padded = (dim + kDimAlign - 1) / kDimAlign * kDimAlign;
      std::vector<float> q(static_cast<size_t>(padded));
      for (float& value : q) value = normal(random) / 4;
      std::vector<float> keys(size_t(dim * kKeyChunk));
      std::vector<float> values(size_t(padded * kKeyChunk));
      kernels.load_keys({key_at, nullptr, true, dim}, keys.data());
      kernels.load_values({value_at, nullptr, true, dim}, padded, values.data());
      std::vector<float> tiled(size_t(StateStride(padded)), 0.0f);
      tiled[size_t(padded + kLanes)] = -INFINITY;
      std::vector<float> gathered = tiled;
      const uint64_t visible = ~uint64_t{0} >> (64 - count);
      for (int twice = 0; twice < 2; ++twice) {
        kernels.attend(
            {1, dim, padded, q.data(), &visible, keys.data(), values.data(), tiled.data()});
        kernels.gather({count, true, dim, padded, q.data(), key_at, value_at, gathered.data()});
      }
      for (size_t i = 0; i < tiled.size(); ++i) {
        ASSERT_NEAR(tiled[i], gathered[i], 2e-4) << dim << " " << count << " " << i;
      }
    }
  }
}

}  // namespace loopserve::worker::cpu_attention
