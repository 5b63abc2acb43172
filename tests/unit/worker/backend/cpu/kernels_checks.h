// What the kernels of every instruction set have to compute, checked value by value.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/conformance/backend_data.h"
#include "worker/backend/cpu/cpu_isa.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/packed_matrix.h"
#include "worker/backend/cpu/work_crew.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cpu {

inline void CheckQuantize(const Kernels& kernels) {
  constexpr int kRows = 3;
  constexpr int64_t kCols = 96;
  testing::Random random(1);
  std::vector<float> x = random.Normals(kRows * kCols);
  std::fill_n(x.begin(), kBlockValues, 0.0f);  // a block of zeros
  x[kCols + 5] = 1e30f;                        // one large value
  for (int i = 0; i < 32; ++i) x[2 * kCols + i] = 1e-30f;
  const size_t blocks = kCols / kBlockValues;
  std::vector<int8_t> q(blocks * kPlanes * kRowTile * kBlockValues);
  std::vector<float> scale(blocks * kRowTile), scaled_sum(blocks * kRowTile);
  std::vector<int32_t> half_sum(blocks * kRowTile * 2);
  kernels.quantize(x.data(), kCols, kRows, kCols,
                   {q.data(), scale.data(), scaled_sum.data(), half_sum.data()});
  for (int r = 0; r < kRows; ++r) {
    for (size_t b = 0; b < blocks; ++b) {
      const size_t at = b * kRowTile + static_cast<size_t>(r);
      const float* block = x.data() + r * kCols + b * kBlockValues;
      float top = 0;
      for (int i = 0; i < kBlockValues; ++i) top = std::max(top, std::fabs(block[i]));
      EXPECT_EQ(scale[at], top / (127.0f * 256.0f));
      const int8_t* first =
          q.data() + (b * kPlanes * kRowTile + static_cast<size_t>(r)) * kBlockValues;
      const int8_t* second = first + kRowTile * kBlockValues;
      int sums[2] = {0, 0};
      for (int i = 0; i < kBlockValues; ++i) {
        const int value = 256 * first[i] + second[i];
        sums[i / 16] += value;
        // Half a step, or one where the second plane is at its end.
        EXPECT_NEAR(value * double{scale[at]}, block[i], 1.01 * scale[at]);
      }
      EXPECT_EQ(half_sum[2 * at], sums[0]);
      EXPECT_EQ(half_sum[2 * at + 1], sums[1]);
      EXPECT_FLOAT_EQ(scaled_sum[at], scale[at] * static_cast<float>(sums[0] + sums[1]));
    }
  }
}

inline void CheckBf16(const Kernels& kernels) {
  std::vector<float> x = {0.0f,
                          -0.0f,
                          1.0f,
                          1.00390625f,  // halfway, to even
                          1.01171875f,  // halfway, to even, upwards
                          -3.1415927f,
                          1e-40f,
                          3.4e38f,
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()};
  testing::Random random(2);
  for (int i = 0; i < 40; ++i) x.push_back(random.Normal());
  for (size_t count = 0; count <= x.size(); ++count) {
    std::vector<uint16_t> got(count + 1, 0xabcd);
    kernels.to_bf16(x.data(), static_cast<int64_t>(count), got.data());
    for (size_t i = 0; i < count; ++i) ASSERT_EQ(got[i], FloatToBf16(x[i])) << x[i];
    ASSERT_EQ(got[count], 0xabcd) << "wrote beyond the end";
  }
}

// silu needs e^x over its whole range.
inline void CheckSilu(const Kernels& kernels) {
  std::vector<float> gate;
  for (float g = -90; g < 90; g += 0.01f) gate.push_back(g);
  const std::vector<float> x = gate;
  const std::vector<float> up(gate.size(), 1.0f);
  kernels.silu_mul(gate.data(), up.data(), static_cast<int64_t>(gate.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = double{x[i]} / (1 + std::exp(-double{x[i]}));
    ASSERT_NEAR(gate[i], want, 5e-7 * std::fabs(want) + 1e-36) << x[i];
  }
}

inline void CheckNormAndAdd(const Kernels& kernels) {
  testing::Random random(3);
  for (const int64_t cols : {1, 7, 16, 63, 64, 65, 576}) {
    const auto n = static_cast<size_t>(cols);
    const std::vector<float> x = random.Normals(n);
    const std::vector<float> weight = random.Normals(n);
    std::vector<float> out(n + 1, -7.0f);
    kernels.rms_norm(x.data(), weight.data(), cols, 1e-5f, out.data());
    double sum = 0;
    for (const float v : x) sum += double{v} * double{v};
    const double factor = 1 / std::sqrt(sum / static_cast<double>(cols) + 1e-5);
    for (size_t i = 0; i < n; ++i) ASSERT_NEAR(out[i], x[i] * factor * weight[i], 2e-6);
    EXPECT_EQ(out[n], -7.0f) << "wrote beyond the end";
    std::vector<float> to = weight;
    kernels.add(to.data(), x.data(), cols);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(to[i], weight[i] + x[i]);
  }
}

// One panel of every format: a tile of any height gives each row the bits it has alone.
inline void CheckMatMulTiles(const Kernels& kernels) {
  testing::Random random(4);
  const auto memory = kvstore::CreateHostMemory();
  WorkCrew crew(1);
  for (int t = 0; t < kWeightTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    const int64_t cols = 2 * std::max(kBlockValues, InfoOf(type).block_values);
    const int outputs = 27;
    const testing::FileMatrix file = testing::RandomMatrix(type, outputs, cols, random);
    const auto matrix = *PackedMatrix::Pack(file.view, {0, outputs}, *memory, crew);
    std::vector<float> decoded(static_cast<size_t>(outputs * cols));
    ASSERT_TRUE(DequantizeRows(file.view, 0, decoded).ok());
    const std::vector<float> x = random.Normals(static_cast<size_t>(kRowTile * cols));
    const std::vector<float> rounded = matrix->quantised() ? testing::RoundedToPlanes(x) : x;
    std::vector<float> alone(kRowTile * outputs);
    for (int rows = 1; rows <= kRowTile; ++rows) {
      const auto blocks = static_cast<size_t>(cols / kBlockValues);
      std::vector<int8_t> q(blocks * kPlanes * kRowTile * kBlockValues);
      std::vector<float> scale(blocks * kRowTile), scaled_sum(blocks * kRowTile);
      std::vector<int32_t> half_sum(blocks * kRowTile * 2);
      const QuantTile quant{q.data(), scale.data(), scaled_sum.data(), half_sum.data()};
      kernels.quantize(x.data(), cols, rows, cols, quant);
      std::vector<float> out(kRowTile * (outputs + 1), 77.0f);
      kernels.matmul[t]({.panel = matrix->panel(0),
                         .cols = cols,
                         .x = x.data(),
                         .x_stride = cols,
                         .quant = quant,
                         .rows = rows,
                         .outputs = outputs,
                         .prefetch = true,
                         .out = out.data(),
                         .out_stride = outputs + 1});
      const float* last = out.data() + (rows - 1) * (outputs + 1);
      for (int n = 0; n < outputs; ++n) {
        double want = 0;
        for (int64_t k = 0; k < cols; ++k) {
          want += double{decoded[static_cast<size_t>(n * cols + k)]} *
                  double{rounded[static_cast<size_t>((rows - 1) * cols + k)]};
        }
        ASSERT_NEAR(last[n], want, 2e-4) << InfoOf(type).name << " rows " << rows << " out " << n;
        alone[static_cast<size_t>((rows - 1) * outputs + n)] = last[n];
        for (int r = 0; r + 1 < rows; ++r) {
          ASSERT_EQ(out[static_cast<size_t>(r * (outputs + 1) + n)],
                    alone[static_cast<size_t>(r * outputs + n)])
              << InfoOf(type).name << " row " << r << " of " << rows;
        }
      }
      for (int r = 0; r < kRowTile; ++r) {
        ASSERT_EQ(out[static_cast<size_t>(r * (outputs + 1) + outputs)], 77.0f);
      }
    }
  }
}

inline void CheckKernels(absl::string_view isa) {
  const auto kernels = SelectKernels(isa);
  if (!kernels.ok()) GTEST_SKIP() << "*** NOT RUN: " << kernels.status().message() << " ***";
  EXPECT_EQ((*kernels)->name, isa);
  CheckQuantize(**kernels);
  CheckBf16(**kernels);
  CheckSilu(**kernels);
  CheckNormAndAdd(**kernels);
  CheckMatMulTiles(**kernels);
}

}  // namespace loopserve::worker::cpu
