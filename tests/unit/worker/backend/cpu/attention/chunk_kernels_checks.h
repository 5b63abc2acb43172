// What every table of chunk kernels must do, checked value by value.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "common/e4m3.h"
#include "kvstore/scaled_vector.h"
#include "worker/backend/cpu/attention/chunk_kernels.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cpu_attention {

using kvstore::KvDtype;

inline constexpr int kCheckedDims[] = {16, 17, 24, 31, 32, 64, 80, 96, 128};

// The dtypes of keys and values that a table takes.
inline std::vector<KvDtype> DtypesOf(const ChunkKernels& kernels) {
  if (kernels.attend == Avx512Bf16ChunkKernels().attend) return {KvDtype::kBf16};
  if (kernels.attend == Avx512VnniChunkKernels().attend) return {KvDtype::kInt8};
  return {KvDtype::kBf16, KvDtype::kF32, KvDtype::kFp8, KvDtype::kInt8};
}

inline int Padded(int dim, KvDtype dtype) {
  const int align = dtype == KvDtype::kInt8 ? kInt8DimAlign : kDimAlign;
  return (dim + align - 1) / align * align;
}

inline std::vector<float> SomeFloats(std::mt19937& random, size_t count, float spread = 1) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Vectors of which each has 448, so that their scales are 1, and which have every number of E4M3.
inline std::vector<float> EveryFp8Number(int dim) {
  std::vector<float> values(size_t(kKeyChunk * dim));
  for (size_t i = 0; i < values.size(); ++i) {
    const float number = common::E4m3ToFloat(static_cast<uint8_t>(i));
    values[i] = i % size_t(dim) == 0 || std::isnan(number) ? common::kLargestE4m3 : number;
  }
  return values;
}

// The vectors of a chunk as an arena holds them, and what they are exactly.
struct StoredChunk {
  StoredChunk(KvDtype dtype, int dim, const std::vector<float>& values)
      : dtype(dtype), dim(dim), bytes(values.size() * 4), exact(values) {
    const auto n = size_t(dim);
    for (size_t j = 0; j < kKeyChunk; ++j) {
      float* vector = exact.data() + j * n;
      std::byte* to = bytes.data() + j * n * kvstore::DtypeBytes(dtype);
      at[j] = to;
      if (kvstore::HasScales(dtype)) {
        scales[j] = kvstore::EncodeVector(dtype, vector, n, to);
        kvstore::DecodeVector(dtype, to, n, scales[j], vector);
      } else if (dtype == KvDtype::kF32) {
        std::memcpy(to, vector, n * sizeof(float));
      } else {
        for (size_t i = 0; i < n; ++i) {
          const uint16_t half = FloatToBf16(vector[i]);
          std::memcpy(to + 2 * i, &half, sizeof half);
          vector[i] = Bf16ToFloat(half);
        }
      }
    }
  }
  StoredChunk(const StoredChunk&) = delete;
  StoredChunk& operator=(const StoredChunk&) = delete;

  static StoredChunk Random(KvDtype dtype, int dim, std::mt19937& random, float spread = 1) {
    return {dtype, dim, SomeFloats(random, size_t(kKeyChunk * dim), spread)};
  }
  ChunkSource Source(bool fetch) const { return {at, fetch ? at : nullptr, dtype, dim, scales}; }
  double At(int j, int i) const { return double{exact[size_t(j * dim + i)]}; }

  const KvDtype dtype;
  const int dim;
  std::vector<std::byte> bytes;
  std::vector<float> exact;
  const std::byte* at[kKeyChunk];
  alignas(64) float scales[kKeyChunk] = {};
};

// Laid-out keys and values are the arena's numbers exactly, and padding is zero.
inline void CheckLoads(const ChunkKernels& kernels, const StoredChunk& chunk) {
  const int dim = chunk.dim;
  const int padded = Padded(dim, chunk.dtype);
  std::vector<float> keys(size_t(padded * kKeyChunk), NAN);
  std::vector<float> values(size_t(padded * kKeyChunk), NAN);
  kernels.load_keys(chunk.Source(true), keys.data());
  kernels.load_values(chunk.Source(false), padded, values.data());
  for (int j = 0; j < kKeyChunk; ++j) {
    for (int i = 0; i < padded; ++i) {
      const float want = i < dim ? chunk.exact[size_t(j * dim + i)] : 0.0f;
      ASSERT_EQ(values[size_t(j * padded + i)], want) << dim << " " << j << " " << i;
      if (i < dim) {
        ASSERT_EQ(keys[size_t(i * kKeyChunk + j)], want) << dim << " " << j;
      }
    }
  }
}

inline void CheckLoads(const ChunkKernels& kernels) {
  std::mt19937 random(1);
  for (const int dim : kCheckedDims) {
    for (const KvDtype dtype : DtypesOf(kernels)) {
      CheckLoads(kernels, StoredChunk::Random(dtype, dim, random, 3));
      if (dtype == KvDtype::kFp8) CheckLoads(kernels, {dtype, dim, EveryFp8Number(dim)});
    }
  }
}

// Bits of a weight: float32 rounds to 2^-24, bf16 to 2^-8 after an approximation within 1e-4, and
// steps of 2^-16 come after one too.
inline double WeightError(const ChunkKernels& kernels) {
  if (kernels.attend == Avx512VnniChunkKernels().attend) return 1.5e-4;
  return kernels.attend == Avx512Bf16ChunkKernels().attend ? 0.00402 : 3e-7;
}

// A chunk of keys and values, laid out, and rows of queries, loaded.
struct LaidOut {
  LaidOut(const ChunkKernels& kernels, const std::vector<float>& queries, const StoredChunk& keys,
          const StoredChunk& values)
      : dim(keys.dim),
        padded(Padded(keys.dim, keys.dtype)),
        rows(static_cast<int>(queries.size()) / dim),
        q(size_t(rows * padded)),
        k(size_t(padded * kKeyChunk)),
        v(size_t(padded * kKeyChunk)),
        keys(keys),
        values(values) {
    for (int r = 0; r < rows; ++r) {
      kernels.load_query(&queries[size_t(r * dim)], dim, padded, 1.0f, &q[size_t(r * padded)]);
    }
    kernels.load_keys(keys.Source(false), k.data());
    kernels.load_values(values.Source(false), padded, v.data());
  }
  ChunkStep Step(const uint64_t* visible, float* state) const {
    return {rows,     dim,      padded,      1.0f,          q.data(), visible,
            k.data(), v.data(), keys.scales, values.scales, state};
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
  const StoredChunk& keys;
  const StoredChunk& values;
};

// With one dimension, q = 1 and key j = score j, the weights are seen through the values.
inline void CheckWeights(const ChunkKernels& kernels) {
  const double error = WeightError(kernels);
  const KvDtype dtype = DtypesOf(kernels).front();
  // Below the smallest normal float, or what has no inverse in steps, is nothing.
  const double smallest = dtype == KvDtype::kInt8 ? 1e-27 : 1.2e-38;
  for (float wanted = 0; wanted > -140; wanted -= 0.37f) {
    std::vector<float> scores(kKeyChunk, wanted);
    scores[0] = 0;
    std::vector<float> units(kKeyChunk, 0);
    units[5] = 1;
    const StoredChunk keys(dtype, 1, scores), values(dtype, 1, units);
    const LaidOut chunk(kernels, {1.0f}, keys, values);
    std::vector<float> state = chunk.Nothing();
    const uint64_t visible = (uint64_t{1} << 5) | 1;
    kernels.attend(chunk.Step(&visible, state.data()));
    const double exact = keys.At(5, 0);
    const double weight = exact < -126 ? 0 : std::exp2(exact);
    EXPECT_NEAR(state[0], weight, weight * error + smallest) << exact;
    EXPECT_EQ(state[size_t(chunk.padded + kLanes)], 0.0f);
    float out = -7;
    kernels.finish(state.data(), 1, chunk.padded, &out);
    EXPECT_NEAR(out, weight / (1 + weight), weight * 3 * error + smallest);
  }
}

// A chunk that a row sees nothing of leaves it alone, and so does a merge with nothing.
inline void CheckNeutrals(const ChunkKernels& kernels) {
  constexpr int kDim = 32;
  constexpr int kRows = 8;
  std::mt19937 random(2);
  const KvDtype dtype = DtypesOf(kernels).back();
  const auto keys = StoredChunk::Random(dtype, kDim, random);
  const auto values = StoredChunk::Random(dtype, kDim, random);
  const LaidOut chunk(kernels, SomeFloats(random, kRows * kDim), keys, values);
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
  kernels.merge(kRows, chunk.padded, nothing.data(), state.data());
  EXPECT_EQ(before, state);
  kernels.merge(kRows, chunk.padded, before.data(), nothing.data());
  EXPECT_EQ(before, nothing);
}

// The kernel without a laid-out chunk gives the bits of the one with.
inline void CheckStream(const ChunkKernels& kernels) {
  if (kernels.stream == nullptr) GTEST_SKIP() << "has no such kernel";
  std::mt19937 random(3);
  for (const int dim : {32, 64, 96, 128}) {
    for (int rows = 1; rows <= kStreamRows; ++rows) {
      for (const int count : {1, 2, 17, 63, 64}) {
        const auto keys = StoredChunk::Random(kernels.stream_dtype, dim, random);
        const auto values = StoredChunk::Random(kernels.stream_dtype, dim, random);
        const LaidOut chunk(kernels, SomeFloats(random, size_t(rows * dim)), keys, values);
        std::vector<uint64_t> visible(size_t(rows), ~uint64_t{0} >> (64 - count));
        visible[0] = 1;
        std::vector<float> state(size_t(rows) * chunk.stride(), 0.5f);
        std::vector<float> streamed = state;
        kernels.attend(chunk.Step(visible.data(), state.data()));
        kernels.stream(chunk.Step(visible.data(), streamed.data()), keys.Source(true),
                       values.Source(true));
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
  for (const KvDtype dtype : DtypesOf(kernels)) {
    for (const int dim : kCheckedDims) {
      for (const int count : {1, 3, 40, 64}) {
        const auto keys = StoredChunk::Random(dtype, dim, random);
        const auto values = StoredChunk::Random(dtype, dim, random);
        const LaidOut chunk(kernels, SomeFloats(random, size_t(dim), 0.25f), keys, values);
        std::vector<float> tiled = chunk.Nothing();
        std::vector<float> gathered = tiled;
        const uint64_t visible = ~uint64_t{0} >> (64 - count);
        for (int twice = 0; twice < 2; ++twice) {
          kernels.attend(chunk.Step(&visible, tiled.data()));
          kernels.gather({count, dtype, dim, chunk.padded, 1.0f, chunk.q.data(), keys.at, values.at,
                          keys.scales, values.scales, gathered.data()});
        }
        for (size_t i = 0; i < tiled.size(); ++i) {
          ASSERT_NEAR(tiled[i], gathered[i], tolerance) << dim << " " << count << " " << i;
        }
      }
    }
  }
}

// Every dimension of every key counts, at every width: attention by its definition, in doubles.
inline void CheckDefinition(const ChunkKernels& kernels) {
  std::mt19937 random(5);
  for (const KvDtype dtype : DtypesOf(kernels)) {
    for (const int dim : kCheckedDims) {
      std::vector<float> q = SomeFloats(random, size_t(dim), 0.5f);
      for (float& value : q) value = Bf16ToFloat(FloatToBf16(value));
      const auto keys = StoredChunk::Random(dtype, dim, random);
      const auto values = StoredChunk::Random(dtype, dim, random);
      const LaidOut chunk(kernels, q, keys, values);
      std::vector<float> state = chunk.Nothing();
      const uint64_t all = ~uint64_t{0};
      kernels.attend(chunk.Step(&all, state.data()));
      std::vector<float> out(size_t(dim), NAN);
      kernels.finish(state.data(), dim, chunk.padded, out.data());
      std::vector<double> want(size_t(dim), 0.0);
      double total = 0;
      for (int j = 0; j < kKeyChunk; ++j) {
        double score = 0;
        for (int i = 0; i < dim; ++i) score += double{q[size_t(i)]} * keys.At(j, i);
        total += std::exp2(score);
        for (int i = 0; i < dim; ++i) want[size_t(i)] += std::exp2(score) * values.At(j, i);
      }
      for (int i = 0; i < dim; ++i) {
        ASSERT_NEAR(out[size_t(i)], want[size_t(i)] / total, 1e-5 + 3 * WeightError(kernels))
            << dim << " " << i;
      }
    }
  }
}

}  // namespace loopserve::worker::cpu_attention
