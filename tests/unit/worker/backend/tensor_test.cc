#include "worker/backend/tensor.h"

#include <gtest/gtest.h>

#include <vector>

namespace loopserve::worker {
namespace {

ptrdiff_t BytesBetween(const float* from, const float* to) {
  return reinterpret_cast<const std::byte*>(to) - reinterpret_cast<const std::byte*>(from);
}

TEST(TensorView, RowsKeepTheStrideAndMoveByIt) {
  std::vector<float> values(4 * 10);
  const TensorView view{values.data(), 4, 6, 10};
  EXPECT_EQ(view.row(3), values.data() + 30);
  const TensorView rows = view.Rows(1, 2);
  EXPECT_EQ(rows.data, values.data() + 10);
  EXPECT_EQ(rows.rows, 2);
  EXPECT_EQ(rows.cols, 6);
  EXPECT_EQ(rows.stride, 10);
  EXPECT_EQ(rows.row(1), view.row(2));
}

TEST(TensorView, ColumnsOfRowsAreRowsOfColumns) {
  std::vector<float> values(4 * 10);
  const TensorView view{values.data(), 4, 10, 10};
  const TensorView columns = view.Cols(3, 5);
  EXPECT_EQ(columns.data, values.data() + 3);
  EXPECT_EQ(columns.rows, 4);
  EXPECT_EQ(columns.cols, 5);
  EXPECT_EQ(columns.stride, 10);
  EXPECT_EQ(columns.Rows(2, 1).data, view.Rows(2, 1).Cols(3, 5).data);
}

TEST(TensorView, CountsInValuesOfItsType) {
  EXPECT_EQ(BytesOf(ActivationType::kF32), 4u);
  EXPECT_EQ(BytesOf(ActivationType::kBf16), 2u);
  std::vector<float> memory(100);
  for (const ActivationType type : {ActivationType::kF32, ActivationType::kBf16}) {
    const auto bytes = static_cast<ptrdiff_t>(BytesOf(type));
    const TensorView view{memory.data(), 5, 12, 20, type};
    EXPECT_EQ(BytesBetween(view.data, view.row(3)), 60 * bytes);
    EXPECT_EQ(BytesBetween(view.data, view.Rows(2, 3).data), 40 * bytes);
    // An odd column of bf16 lies in the middle of a float.
    EXPECT_EQ(BytesBetween(view.data, view.Cols(7, 2).data), 7 * bytes);
    EXPECT_EQ(BytesBetween(view.data, view.Rows(2, 3).Cols(7, 2).row(1)), 67 * bytes);
    EXPECT_EQ(view.Rows(2, 3).type, type);
    EXPECT_EQ(view.Cols(7, 2).type, type);
  }
}

TEST(TensorView, AnEmptyRangeMayLieAtTheEnd) {
  std::vector<float> values(6);
  const TensorView view{values.data(), 2, 3, 3};
  EXPECT_EQ(view.Rows(2, 0).data, values.data() + 6);
  EXPECT_EQ(view.Rows(2, 0).rows, 0);
  EXPECT_EQ(view.Cols(3, 0).cols, 0);
}

}  // namespace
}  // namespace loopserve::worker
