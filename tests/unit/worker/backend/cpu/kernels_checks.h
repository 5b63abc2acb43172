// What the kernels of every instruction set have to compute, checked value by value.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/match.h"
#include "tests/conformance/backend_data.h"
#include "worker/backend/cpu/cpu_isa.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/matmul.h"
#include "worker/backend/cpu/matmul_kernels.h"
#include "worker/backend/cpu/packed_matrix.h"
#include "worker/backend/cpu/work_crew.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cpu {

// The form of the instruction sets that multiply bytes: two planes of 8 bits, or one.
inline void CheckPlanes(const Kernels& kernels, int planes) {
  const float steps = planes == 1 ? 127.0f : 127.0f * 256.0f;
  const auto plane_rows = static_cast<size_t>(planes * kRowTile);
  constexpr int kRows = 3;
  constexpr int64_t kCols = 96;
  testing::Random random(1);
  std::vector<float> x = random.Normals(kRows * kCols);
  std::fill_n(x.begin(), kBlockValues, 0.0f);  // a block of zeros
  x[kCols + 5] = 1e30f;                        // one large value
  for (int i = 0; i < 32; ++i) x[2 * kCols + i] = 1e-30f;
  const size_t blocks = kCols / kBlockValues;
  std::vector<std::byte> tile(kernels.tile_bytes(kCols, kRows));
  kernels.prepare(x.data(), kCols, kRows, kCols, kRows, tile.data());
  const auto* q = reinterpret_cast<const int8_t*>(tile.data());
  const auto* scale = reinterpret_cast<const float*>(q + blocks * plane_rows * kBlockValues);
  const float* scaled_sum = scale + blocks * kRowTile;
  const auto* half_sum = reinterpret_cast<const int32_t*>(scaled_sum + blocks * kRowTile);
  for (int r = 0; r < kRows; ++r) {
    for (size_t b = 0; b < blocks; ++b) {
      const size_t at = b * kRowTile + static_cast<size_t>(r);
      const float* block = x.data() + r * kCols + b * kBlockValues;
      float top = 0;
      for (int i = 0; i < kBlockValues; ++i) top = std::max(top, std::fabs(block[i]));
      EXPECT_EQ(scale[at], top / steps);
      const int8_t* first = q + (b * plane_rows + static_cast<size_t>(r)) * kBlockValues;
      const int8_t* second = first + kRowTile * kBlockValues;
      int sums[2] = {0, 0};
      for (int i = 0; i < kBlockValues; ++i) {
        const int value = planes == 1 ? first[i] : 256 * first[i] + second[i];
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

// One panel of every format: among any number of rows each has the bits it has alone.
class PanelChecks {
 public:
  PanelChecks(const Kernels& kernels, WeightType type) : kernels_(kernels), type_(type) {
    testing::Random random(4);
    const int unit = std::max(kBlockValues, InfoOf(type).block_values);
    cols_ = unit == kBlockValues ? 11 * unit : 2 * unit;
    const testing::FileMatrix file = testing::RandomMatrix(type, kOutputs, cols_, random);
    WorkCrew crew(1);
    matrix_ = *PackedMatrix::Pack(file.view, {0, kOutputs}, *memory_, crew);
    decoded_.resize(static_cast<size_t>(kOutputs * cols_));
    EXPECT_TRUE(DequantizeRows(file.view, 0, decoded_).ok());
    x_ = random.Normals(static_cast<size_t>(kMostRows * cols_));
    std::fill_n(x_.begin(), kBlockValues, 0.0f);            // row 0
    std::fill_n(x_.begin() + cols_, kBlockValues, 1e-30f);  // row 1
    for (int i = 0; i < kBlockValues; ++i)
      x_[static_cast<size_t>(2 * cols_ + i)] *= 1e20f;  // row 2
    rounded_ = matrix_->quantised() ? testing::RoundedActivations(kernels.name, x_) : x_;
  }

  void Run() {
    std::vector<float> alone(static_cast<size_t>(kMostRows * kOutputs));
    for (int r = 0; r < kMostRows; ++r) {
      const std::vector<float> out = Multiply(r, 1);
      for (int n = 0; n < kOutputs; ++n) {
        const size_t at = static_cast<size_t>(r * kOutputs + n);
        alone[at] = out[static_cast<size_t>(n)];
        const double tolerance = r == 2 ? 2e15 : 2e-4;
        ASSERT_NEAR(alone[at], Want(r, n), tolerance) << InfoOf(type_).name << " out " << n;
      }
    }
    for (const int rows : {2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 33, 48, 49, 129, kMostRows}) {
      const std::vector<float> out = Multiply(0, rows);
      for (int r = 0; r < rows; ++r) {
        for (int n = 0; n < kOutputs; ++n) {
          ASSERT_EQ(out[static_cast<size_t>(r * kStride + n)],
                    alone[static_cast<size_t>(r * kOutputs + n)])
              << InfoOf(type_).name << " row " << r << " of " << rows;
        }
        ASSERT_EQ(out[static_cast<size_t>(r * kStride + kOutputs)], 77.0f) << "beyond the end";
      }
    }
  }

 private:
  static constexpr int kMostRows = 150;
  static constexpr int kOutputs = 27;
  static constexpr int kStride = kOutputs + 1;

  double Want(int r, int n) const {
    double want = 0;
    for (int64_t k = 0; k < cols_; ++k) {
      want += double{decoded_[static_cast<size_t>(n * cols_ + k)]} *
              double{rounded_[static_cast<size_t>(r * cols_ + k)]};
    }
    return want;
  }

  // Rows [first, first + rows) of x.
  std::vector<float> Multiply(int first, int rows) {
    const float* x = x_.data() + first * cols_;
    const int tile_rows = kernels_.tile_rows(rows, cols_);
    const int tiles = (rows + tile_rows - 1) / tile_rows;
    const size_t tile_bytes = kernels_.tile_bytes(cols_, tile_rows);
    CacheLines prepared, workspace;
    prepared.Grow(tile_bytes * static_cast<size_t>(tiles));
    std::memset(prepared.data(), 0xff, tile_bytes * static_cast<size_t>(tiles));  // NaN
    workspace.Grow(kernels_.workspace_bytes(cols_));
    for (int t = 0; t < tiles; ++t) {
      kernels_.prepare(x + t * tile_rows * cols_, cols_, std::min(tile_rows, rows - t * tile_rows),
                       cols_, tile_rows, prepared.data() + static_cast<size_t>(t) * tile_bytes);
    }
    std::vector<float> out(static_cast<size_t>(rows * kStride), 77.0f);
    kernels_.matmul[static_cast<size_t>(type_)](
        {.panel = matrix_->panel(0),
         .cols = cols_,
         .x = x,
         .x_stride = cols_,
         .tiles = matrix_->quantised() ? prepared.data() : nullptr,
         .tile_bytes = tile_bytes,
         .rows = rows,
         .tile_rows = tile_rows,
         .outputs = kOutputs,
         .workspace = workspace.data(),
         .out = out.data(),
         .out_stride = kStride});
    return out;
  }

  const Kernels& kernels_;
  const WeightType type_;
  const std::unique_ptr<kvstore::Memory> memory_ = kvstore::CreateHostMemory();
  int64_t cols_ = 0;
  std::unique_ptr<PackedMatrix> matrix_;
  std::vector<float> decoded_, x_, rounded_;
};

inline void CheckPanels(const Kernels& kernels) {
  for (int t = 0; t < kWeightTypes; ++t) PanelChecks(kernels, static_cast<WeightType>(t)).Run();
}

inline void CheckKernels(absl::string_view isa) {
  const auto kernels = SelectKernels(isa);
  if (!kernels.ok()) GTEST_SKIP() << "*** NOT RUN: " << kernels.status().message() << " ***";
  EXPECT_EQ((*kernels)->name, isa);
  // The others have forms of their own.
  if (!absl::StrContains(isa, "bf16") && isa != "avx512-vnni-int8") {
    CheckPlanes(**kernels, (*kernels)->activation_bits / 8);
  }
  CheckBf16(**kernels);
  CheckSilu(**kernels);
  CheckNormAndAdd(**kernels);
  CheckPanels(**kernels);
}

}  // namespace loopserve::worker::cpu
