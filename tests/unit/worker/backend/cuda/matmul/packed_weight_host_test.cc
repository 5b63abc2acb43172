#include "worker/backend/cuda/matmul/packed_weight.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/conformance/backend_data.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cuda/matmul/packed_layout.h"

namespace loopserve::worker::cuda {
namespace {

using testing::FileMatrix;
using testing::Random;
using testing::RandomMatrix;

constexpr WeightType kAll[] = {
    WeightType::kF32,  WeightType::kF16,  WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1,
    WeightType::kQ5_0, WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K};

bool IsFloat(WeightType type) { return DeviceTypeOf(type) == WeightType::kBF16; }

std::vector<int64_t> ColsOf(WeightType type) {
  if (IsFloat(type)) return {1, 7, 8, 40};
  if (InfoOf(type).block_values == 256) return {256, 768};
  return {32, 96, 128, 288};
}

void ExpectRows(const FileMatrix& file, RowRange rows, std::span<const std::byte> packed) {
  const WeightType type = file.view.type;
  std::vector<float> want(static_cast<size_t>(file.view.cols));
  std::vector<float> got(want.size());
  for (int64_t r = 0; r < rows.size(); ++r) {
    ASSERT_TRUE(DequantizeRows(file.view, rows.begin + r, want).ok());
    if (IsFloat(type)) want = testing::RoundedToBf16(want);
    UnpackRow(DeviceTypeOf(type), packed, r, got);
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(got[i], want[i]) << InfoOf(type).name << " row " << r << " column " << i;
    }
  }
}

TEST(PackedWeight, GivesTheFilesValues) {
  Random random(1);
  for (const WeightType type : kAll) {
    for (const int64_t cols : ColsOf(type)) {
      const FileMatrix file = RandomMatrix(type, 37, cols, random);
      for (const RowRange rows : {RowRange{0, 37}, RowRange{5, 22}, RowRange{3, 3}}) {
        std::vector<std::byte> packed(PackedBytes(type, rows.size(), cols), std::byte{0xa5});
        ASSERT_TRUE(PackForDevice(file.view, rows, packed).ok());
        ExpectRows(file, rows, packed);
      }
    }
  }
}

TEST(PackedWeight, PaddingIsZero) {
  Random random(2);
  const FileMatrix bf16 = RandomMatrix(WeightType::kF32, 3, 13, random);
  std::vector<std::byte> packed(PackedBytes(WeightType::kF32, 3, 13), std::byte{0xff});
  ASSERT_EQ(packed.size(), size_t{3 * 16 * 2});
  ASSERT_TRUE(PackForDevice(bf16.view, {0, 3}, packed).ok());
  for (size_t r = 0; r < 3; ++r) {
    for (size_t b = 26; b < 32; ++b) EXPECT_EQ(packed[r * 32 + b], std::byte{0});
  }
  for (const WeightType type : kAll) {
    if (IsFloat(type)) continue;
    const FileMatrix file = RandomMatrix(type, 3, 256, random);
    packed.assign(PackedBytes(type, 3, 256), std::byte{0xff});
    ASSERT_TRUE(PackForDevice(file.view, {0, 3}, packed).ok());
    std::vector<float> row(256, 1.0f);
    UnpackRow(type, packed, 3, row);
    for (const float value : row) ASSERT_EQ(value, 0.0f) << InfoOf(type).name;
  }
}

TEST(PackedWeight, RecordsAreAlignedAndNoLargerThanTheFileByATwelfth) {
  for (const WeightType type : kAll) {
    if (IsFloat(type)) continue;
    const RecordLayout layout = LayoutOf(type);
    EXPECT_EQ(layout.bytes() % 16, 0);
    EXPECT_EQ(layout.high_at() % 16 + layout.scale_at() % 16 + layout.super_at() % 16, 0);
    const double file = 2048.0 / InfoOf(type).block_values * InfoOf(type).block_bytes;
    EXPECT_GE(layout.bytes() * 1.0, file);
    EXPECT_LE(layout.bytes() * 1.0, file * 13 / 12) << InfoOf(type).name;
  }
}

TEST(PackedWeight, PartsPackedApartMakeTheWhole) {
  Random random(3);
  const FileMatrix file = RandomMatrix(WeightType::kQ6_K, 40, 512, random);
  std::vector<std::byte> whole(PackedBytes(WeightType::kQ6_K, 40, 512));
  ASSERT_TRUE(PackForDevice(file.view, {0, 40}, whole).ok());
  std::vector<std::byte> parts(whole.size());
  const size_t first = PackedBytes(WeightType::kQ6_K, 16, 512);
  const std::span<std::byte> all(parts);
  ASSERT_TRUE(PackForDevice(file.view, {0, 16}, all.first(first)).ok());
  ASSERT_TRUE(PackForDevice(file.view, {16, 40}, all.subspan(first)).ok());
  EXPECT_EQ(std::memcmp(whole.data(), parts.data(), whole.size()), 0);
}

TEST(PackedWeight, ThreadsChangeNothing) {
  for (const WeightType type :
       {WeightType::kBF16, WeightType::kF32, WeightType::kQ4_0, WeightType::kQ6_K}) {
    testing::Random random(3);
    const int64_t cols = std::max(InfoOf(type).block_values, 32);
    const testing::FileMatrix matrix = testing::RandomMatrix(type, 100, cols, random);
    for (const RowRange rows : {RowRange{0, 100}, RowRange{7, 90}, RowRange{3, 3}}) {
      std::vector<std::byte> alone(PackedBytes(type, rows.size(), cols));
      ASSERT_OK(PackForDevice(matrix.view, rows, alone));
      for (const int threads : {0, 1, 2, 3, 50}) {
        std::vector<std::byte> together(alone.size());
        ASSERT_OK(PackForDevice(matrix.view, rows, threads, together));
        EXPECT_EQ(together, alone) << InfoOf(type).name << ", threads: " << threads;
      }
    }
  }
}

TEST(PackedWeight, RefusesWhatDoesNotFit) {
  Random random(4);
  const FileMatrix file = RandomMatrix(WeightType::kQ4_0, 4, 64, random);
  std::vector<std::byte> out(PackedBytes(WeightType::kQ4_0, 4, 64));
  EXPECT_EQ(PackForDevice(file.view, {0, 5}, out).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackForDevice(file.view, {-1, 3}, out).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackForDevice(file.view, {3, 2}, out).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackForDevice(file.view, {0, 4}, std::span(out).first(8)).code(),
            absl::StatusCode::kInvalidArgument);
  WeightView odd = file.view;
  odd.cols = 33;
  EXPECT_EQ(PackForDevice(odd, {0, 4}, out).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace loopserve::worker::cuda
