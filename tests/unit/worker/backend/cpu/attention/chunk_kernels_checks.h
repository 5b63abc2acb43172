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
      std::vector<float> keys(size_t(padded * kKeyChunk), NAN);
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

// Bits of a weight: float32 rounds to 2^-24, bf16 to 2^-8 after an approximation within 1e-4.
inline double WeightError(const ChunkKernels& kernels) {
  return kernels.attend == Avx512Bf16ChunkKernels().attend ? 0.00402 : 3e-7;
}

// A chunk of bf16 keys and values, laid out, and rows of queries, loaded.
struct LaidOut {
  LaidOut(const ChunkKernels& kernels, int dim, const std::vector<float>& queries,
          const std::vector<uint16_t>& keys, const std::vector<uint16_t>& values)
      : dim(dim),
        padded((dim + kDimAlign - 1) / kDimAlign * kDimAlign),
        rows(static_cast<int>(queries.size()) / dim),
        q(size_t(rows * padded)),
        k(size_t(padded * kKeyChunk)),
        v(size_t(padded * kKeyChunk)) {
    for (int j = 0; j < kKeyChunk; ++j) {
      key_at[j] = reinterpret_cast<const std::byte*>(&keys[size_t(j * dim)]);
      value_at[j] = reinterpret_cast<const std::byte*>(&values[size_t(j * dim)]);
    }
    for (int r = 0; r < rows; ++r) {
      kernels.load_query(&queries[size_t(r * dim)], dim, padded, 1.0f, &q[size_t(r * padded)]);
    }
    kernels.load_keys({key_at, nullptr, true, dim}, k.data());
    kernels.load_values({value_at, nullptr, true, dim}, padded, v.data());
  }
  ChunkStep Step(const uint64_t* visible, float* state) const {
    return {rows, dim, padded, 1.0f, q.data(), visible, k.data(), v.data(), state};
  }
  size_t stride() const { return size_t(StateStride(padded)); }
  std::vector<float> Nothing() const {
    std::vector<float> state(size_t(rows) * stride(), 0.0f);
    for (size_t r = 0; r < size_t(rows); ++r) {
      state[r * stride() + size_t(padded + kLanes)] = -INFINITY;
    }
    return state;
  }

  int dim, padded, rows;
  std::vector<float> q, k, v;
  const std::byte* key_at[kKeyChunk];
  const std::byte* value_at[kKeyChunk];
};

inline std::vector<float> SomeFloats(std::mt19937& random, size_t count, float spread = 1) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}
inline std::vector<uint16_t> SomeBf16(std::mt19937& random, size_t count) {
  std::vector<uint16_t> values;
  for (const float value : SomeFloats(random, count)) values.push_back(FloatToBf16(value));
  return values;
}

// With one dimension, q = 1 and key j = score j, the weights are seen through the values.
inline void CheckWeights(const ChunkKernels& kernels) {
  const double error = WeightError(kernels);
  constexpr double kSmallest = 1.2e-38;  // below the smallest normal float is nothing
  for (float wanted = 0; wanted > -140; wanted -= 0.37f) {
    const uint16_t score = FloatToBf16(wanted);
    std::vector<uint16_t> keys(kKeyChunk, score);
    keys[0] = 0;
    std::vector<uint16_t> values(kKeyChunk, 0);
    values[5] = FloatToBf16(1);
    const LaidOut chunk(kernels, 1, {1.0f}, keys, values);
    std::vector<float> state = chunk.Nothing();
    const uint64_t visible = (uint64_t{1} << 5) | 1;
    kernels.attend(chunk.Step(&visible, state.data()));
    const double exact = Bf16ToFloat(score);
    const double weight = exact < -126 ? 0 : std::exp2(exact);
    EXPECT_NEAR(state[0], weight, weight * error + kSmallest) << exact;
    EXPECT_EQ(state[size_t(chunk.padded + kLanes)], 0.0f);
    float out = -7;
    kernels.finish(state.data(), 1, chunk.padded, &out);
    EXPECT_NEAR(out, weight / (1 + weight), weight * 3 * error + kSmallest);
  }
}

// A chunk that a row sees nothing of leaves it alone, and so does a merge with nothing.
inline void CheckNeutrals(const ChunkKernels& kernels) {
  constexpr int kDim = 32;
  constexpr int kRows = 8;
  std::mt19937 random(2);
  const LaidOut chunk(kernels, kDim, SomeFloats(random, kRows * kDim),
                      SomeBf16(random, kDim * kKeyChunk), SomeBf16(random, kDim * kKeyChunk));
  const size_t stride = chunk.stride();
  std::vector<float> nothing = chunk.Nothing();
  std::vector<float> state = nothing;
  std::vector<uint64_t> visible(kRows, ~uint64_t{0});
  visible[3] = 0;
  const ChunkStep step = chunk.Step(visible.data(), state.data());
  kernels.attend(step);
  EXPECT_EQ(0, std::memcmp(&state[3 * stride], &nothing[3 * stride], stride * sizeof(float)));
  std::vector<float> before = state;
  std::fill(visible.begin(), visible.end(), 0);
  visible[1] = 0x8000000000000001;
  kernels.attend(step);
  EXPECT_NE(0, std::memcmp(&state[stride], &before[stride], stride * sizeof(float)));
  std::copy_n(before.begin() + static_cast<int64_t>(stride), stride,
              state.begin() + static_cast<int64_t>(stride));
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
  for (const int dim : {32, 64, 96, 128}) {
    for (int rows = 1; rows <= kStreamRows; ++rows) {
      for (const int count : {1, 2, 17, 63, 64}) {
        const std::vector<uint16_t> keys = SomeBf16(random, size_t(kKeyChunk * dim));
        const std::vector<uint16_t> values = SomeBf16(random, size_t(kKeyChunk * dim));
        const LaidOut chunk(kernels, dim, SomeFloats(random, size_t(rows * dim)), keys, values);
        std::vector<uint64_t> visible(size_t(rows), ~uint64_t{0} >> (64 - count));
        visible[0] = 1;
        std::vector<float> state(size_t(rows) * chunk.stride(), 0.5f);
        std::vector<float> streamed = state;
        kernels.attend(chunk.Step(visible.data(), state.data()));
        kernels.stream(chunk.Step(visible.data(), streamed.data()),
                       {chunk.key_at, chunk.key_at, true, dim},
                       {chunk.value_at, chunk.value_at, true, dim});
        ASSERT_EQ(0, std::memcmp(state.data(), streamed.data(), state.size() * sizeof(float)))
            << dim << " " << rows << " " << count;
      }
    }
  }
}

// One row over scattered keys is what the tile kernel computes, but for the order of its sums.
inline void CheckGather(const ChunkKernels& kernels) {
  std::mt19937 random(4);
  const double tolerance = 2e-4 + 20 * WeightError(kernels);
  for (const int dim : kCheckedDims) {
    for (const int count : {1, 3, 40, 64}) {
      const std::vector<uint16_t> keys = SomeBf16(random, size_t(kKeyChunk * dim));
      const std::vector<uint16_t> values = SomeBf16(random, size_t(kKeyChunk * dim));
      const LaidOut chunk(kernels, dim, SomeFloats(random, size_t(dim), 0.25f), keys, values);
      std::vector<float> tiled = chunk.Nothing();
      std::vector<float> gathered = tiled;
      const uint64_t visible = ~uint64_t{0} >> (64 - count);
      for (int twice = 0; twice < 2; ++twice) {
        kernels.attend(chunk.Step(&visible, tiled.data()));
        kernels.gather({count, true, dim, chunk.padded, 1.0f, chunk.q.data(), chunk.key_at,
                        chunk.value_at, gathered.data()});
      }
      for (size_t i = 0; i < tiled.size(); ++i) {
        ASSERT_NEAR(tiled[i], gathered[i], tolerance) << dim << " " << count << " " << i;
      }
    }
  }
}

// Every dimension of every key counts, at every width: attention by its definition, in doubles.
inline void CheckDefinition(const ChunkKernels& kernels) {
  std::mt19937 random(5);
  for (const int dim : kCheckedDims) {
    std::vector<float> q = SomeFloats(random, size_t(dim), 0.5f);
    for (float& value : q) value = Bf16ToFloat(FloatToBf16(value));
    const std::vector<uint16_t> keys = SomeBf16(random, size_t(kKeyChunk * dim));
    const std::vector<uint16_t> values = SomeBf16(random, size_t(kKeyChunk * dim));
    const LaidOut chunk(kernels, dim, q, keys, values);
    std::vector<float> state = chunk.Nothing();
    const uint64_t all = ~uint64_t{0};
    kernels.attend(chunk.Step(&all, state.data()));
    std::vector<float> out(size_t(dim), NAN);
    kernels.finish(state.data(), dim, chunk.padded, out.data());
    std::vector<double> want(size_t(dim), 0.0);
    double total = 0;
    for (int j = 0; j < kKeyChunk; ++j) {
      double score = 0;
      for (int i = 0; i < dim; ++i) {
        score += double{q[size_t(i)]} * Bf16ToFloat(keys[size_t(j * dim + i)]);
      }
      total += std::exp2(score);
      for (int i = 0; i < dim; ++i) {
        want[size_t(i)] += std::exp2(score) * Bf16ToFloat(values[size_t(j * dim + i)]);
      }
    }
    for (int i = 0; i < dim; ++i) {
      ASSERT_NEAR(out[size_t(i)], want[size_t(i)] / total, 1e-5 + 3 * WeightError(kernels))
          << dim << " " << i;
    }
  }
}

}  // namespace loopserve::worker::cpu_attention
