#include "worker/backend/cpu/packed_matrix.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/conformance/backend_data.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cpu/kernels.h"

namespace loopserve::worker::cpu {
namespace {

using ::loopserve::testing::FileMatrix;
using ::loopserve::testing::Random;
using ::loopserve::testing::RandomMatrix;
using ::loopserve::testing::StatusIs;

class PackedMatrixTest : public ::testing::TestWithParam<int> {
 protected:
  WeightType type() const { return static_cast<WeightType>(GetParam()); }
  const std::unique_ptr<kvstore::Memory> memory_ = kvstore::CreateHostMemory();
  WorkCrew crew_{2};
};

INSTANTIATE_TEST_SUITE_P(Types, PackedMatrixTest, ::testing::Range(0, kWeightTypes),
                         [](const auto& info) {
                           return std::string(InfoOf(static_cast<WeightType>(info.param)).name);
                         });

TEST_P(PackedMatrixTest, KeepsTheFilesValuesExactly) {
  Random random(1);
  const int64_t cols = 3 * InfoOf(type()).block_values;
  const FileMatrix file = RandomMatrix(type(), 75, cols, random);
  for (const RowRange rows :
       {RowRange{0, 75}, RowRange{11, 44}, RowRange{74, 75}, RowRange{5, 5}}) {
    ASSERT_OK_AND_ASSIGN(auto matrix, PackedMatrix::Pack(file.view, rows, *memory_, crew_));
    EXPECT_EQ(matrix->rows(), rows.size());
    EXPECT_EQ(matrix->cols(), cols);
    EXPECT_EQ(matrix->type(), type());
    EXPECT_EQ(matrix->panels(), (rows.size() + kPanelOutputs - 1) / kPanelOutputs);
    std::vector<float> want(static_cast<size_t>(cols));
    std::vector<float> got(want.size());
    for (int64_t r = 0; r < rows.size(); ++r) {
      ASSERT_OK(DequantizeRows(file.view, rows.begin + r, want));
      matrix->DecodeRow(r, got);
      ASSERT_EQ(got, want) << "row " << r;
    }
  }
}

TEST_P(PackedMatrixTest, TakesLittleMoreMemoryThanTheFile) {
  Random random(2);
  const int64_t cols = 4 * std::max(32, InfoOf(type()).block_values);
  const FileMatrix file = RandomMatrix(type(), 64, cols, random);
  ASSERT_OK_AND_ASSIGN(auto matrix, PackedMatrix::Pack(file.view, {0, 64}, *memory_, crew_));
  // The K formats pay for scales in float32, and Q6_K for whole bytes.
  const double most = type() == WeightType::kQ6_K ? 1.6 : type() == WeightType::kQ4_K ? 1.4 : 1.0;
  EXPECT_LE(static_cast<double>(matrix->resident_bytes()),
            most * static_cast<double>(file.bytes.size()));
}

TEST_P(PackedMatrixTest, RefusesWhatDoesNotFit) {
  Random random(3);
  const int64_t cols = 2 * InfoOf(type()).block_values;
  const FileMatrix file = RandomMatrix(type(), 8, cols, random);
  const auto refused = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(PackedMatrix::Pack(file.view, {0, 9}, *memory_, crew_), refused);
  EXPECT_THAT(PackedMatrix::Pack(file.view, {-1, 3}, *memory_, crew_), refused);
  EXPECT_THAT(PackedMatrix::Pack(file.view, {3, 2}, *memory_, crew_), refused);
  WeightView cut = file.view;
  cut.data = cut.data.first(cut.data.size() - 1);
  EXPECT_THAT(PackedMatrix::Pack(cut, {0, 1}, *memory_, crew_), refused);
  WeightView empty = file.view;
  empty.cols = 0;
  EXPECT_THAT(PackedMatrix::Pack(empty, {0, 1}, *memory_, crew_), refused);
}

}  // namespace
}  // namespace loopserve::worker::cpu
