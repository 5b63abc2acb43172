#include "worker/model/tensor_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/gguf_writer.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::GgufWriter;
using ::loopserve::testing::IsOk;
using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

constexpr auto kBad = absl::StatusCode::kInvalidArgument;

void AddTensor(GgufWriter& writer, absl::string_view name, std::vector<int64_t> dims) {
  int64_t values = 1;
  for (const int64_t dim : dims) values *= dim;
  std::vector<float> data(static_cast<size_t>(values));
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  writer.AddTensor(name, dims, 0, std::as_bytes(std::span(data)));
}

class TensorPlanTest : public ::testing::Test {
 protected:
  TensorPlanTest() {
    // 5 units of 2 outputs.
    plan_.AddLinear("linear", 10, 4, Evenly(5, 2));
    plan_.Add({"norm.weight", 4});
    plan_.Ignore("scratch");
  }
  absl::Status Check(const GgufWriter& writer) {
    bytes_ = writer.Build();
    file_ = *GgufFile::Parse(bytes_);
    return plan_.Check(*file_);
  }
  static GgufWriter Sound() {
    GgufWriter writer;
    AddTensor(writer, "linear.weight", {4, 10});
    AddTensor(writer, "norm.weight", {4});
    return writer;
  }

  TensorPlan plan_;
  std::vector<std::byte> bytes_;
  std::unique_ptr<GgufFile> file_;
};

TEST_F(TensorPlanTest, ChecksNamesAndShapes) {
  EXPECT_THAT(Check(Sound()), IsOk());
  GgufWriter more = Sound();
  AddTensor(more, "linear.bias", {10});
  AddTensor(more, "scratch", {1, 2, 3});
  EXPECT_THAT(Check(more), IsOk());
  AddTensor(more, "stranger", {1});
  EXPECT_THAT(Check(more), StatusIs(kBad, HasSubstr("'stranger'")));

  GgufWriter lacking;
  AddTensor(lacking, "norm.weight", {4});
  EXPECT_THAT(Check(lacking), StatusIs(kBad, HasSubstr("lacks the tensor 'linear.weight'")));
  for (const std::vector<int64_t>& dims :
       {std::vector<int64_t>{10, 4}, {40}, {4, 11}, {4, 10, 1}, {4, 5, 2}}) {
    GgufWriter shaped;
    AddTensor(shaped, "linear.weight", dims);
    AddTensor(shaped, "norm.weight", {4});
    EXPECT_THAT(Check(shaped), StatusIs(kBad, HasSubstr("the metadata wants 4 x 10")));
  }
  GgufWriter bias = Sound();
  AddTensor(bias, "linear.bias", {9});
  EXPECT_THAT(Check(bias), StatusIs(kBad, HasSubstr("linear.bias")));
}

TEST_F(TensorPlanTest, SharesWholeUnits) {
  EXPECT_EQ(plan_.RangeOf("linear.weight", {0, 2}).end, 6);
  EXPECT_EQ(plan_.RangeOf("linear.weight", {1, 2}).begin, 6);
  EXPECT_EQ(plan_.RangeOf("linear.bias", {1, 2}).end, 10);
  EXPECT_EQ(plan_.RangeOf("norm.weight", {1, 2}).size(), 4);
}

TEST_F(TensorPlanTest, PredictsBytes) {
  GgufWriter writer = Sound();
  AddTensor(writer, "linear.bias", {10});
  ASSERT_THAT(Check(writer), IsOk());
  const auto backend = *CreateBackend({.name = "reference"});
  EXPECT_EQ(plan_.ShardBytes(*file_, {0, 1}, *backend), (40 + 10 + 4) * sizeof(float));
  EXPECT_EQ(plan_.ShardBytes(*file_, {1, 2}, *backend), (16 + 4 + 4) * sizeof(float));
}

TEST_F(TensorPlanTest, LoadsTheRanksPart) {
  GgufWriter writer = Sound();
  AddTensor(writer, "linear.bias", {10});
  ASSERT_THAT(Check(writer), IsOk());
  const auto backend = *CreateBackend({.name = "reference"});
  const auto matrix = plan_.LoadMatrix(*file_, "linear.weight", {1, 2}, *backend);
  ASSERT_THAT(matrix, IsOk());
  EXPECT_EQ((*matrix)->rows(), 4);
  EXPECT_EQ((*matrix)->cols(), 4);
  const auto bias = plan_.LoadVector(*file_, "linear.bias", {1, 2}, *backend);
  ASSERT_THAT(bias, IsOk());
  ASSERT_EQ((*bias)->view().cols, 4);
  EXPECT_EQ((*bias)->view().data[0], 6);
  EXPECT_THAT(plan_.LoadMatrix(*file_, "none", {0, 1}, *backend), StatusIs(kBad));

  ASSERT_THAT(Check(Sound()), IsOk());
  const auto none = plan_.LoadVector(*file_, "linear.bias", {1, 2}, *backend);
  ASSERT_THAT(none, IsOk());
  EXPECT_EQ(*none, nullptr);
}

TEST_F(TensorPlanTest, LoadsTheRanksPartOfTheInputs) {
  TensorPlan plan;
  plan.AddLinearOfParts("linear", 10, 4, Evenly(2, 2));
  plan.Add({"norm.weight", 4});
  GgufWriter writer = Sound();
  AddTensor(writer, "linear.bias", {10});
  ASSERT_THAT(Check(writer), IsOk());
  ASSERT_THAT(plan.Check(*file_), IsOk());
  EXPECT_EQ(plan.RangeOf("linear.weight", {1, 2}).size(), 10);
  EXPECT_EQ(plan.InputRangeOf("linear.weight", {1, 2}).begin, 2);
  EXPECT_EQ(plan.InputRangeOf("linear.bias", {1, 2}).size(), 0);

  const auto backend = *CreateBackend({.name = "reference"});
  EXPECT_EQ(plan.ShardBytes(*file_, {1, 2}, *backend), (20 + 10 + 4) * sizeof(float));
  const auto matrix = plan.LoadMatrix(*file_, "linear.weight", {1, 2}, *backend);
  ASSERT_THAT(matrix, IsOk());
  EXPECT_EQ((*matrix)->rows(), 10);
  EXPECT_EQ((*matrix)->cols(), 2);
  // Row r holds 4r, 4r + 1, ...: the second half of it.
  std::vector<float> x = {1, 10}, y(10);
  const TensorView out{y.data(), 1, 10, 10};
  const Matrix* const weight = matrix->get();
  ASSERT_THAT(backend->MatMul({x.data(), 1, 2, 2}, {&weight, 1}, {&out, 1}), IsOk());
  EXPECT_EQ(y[0], 2 + 30);
  EXPECT_EQ(y[9], 38 + 390);
  const auto bias = plan.LoadVector(*file_, "linear.bias", {1, 2}, *backend);
  ASSERT_THAT(bias, IsOk());
  EXPECT_EQ((*bias)->view().cols, 10);
}

TEST(CanShareInputsTest, KeepsBlocksWhole) {
  const auto can = [](WeightType type, int64_t cols, int64_t units, int ranks) {
    return CanShareInputs({.type = type, .rows = 1, .cols = cols}, Evenly(units, cols / units),
                          ranks);
  };
  EXPECT_TRUE(can(WeightType::kF32, 48, 3, 2));
  EXPECT_TRUE(can(WeightType::kQ8_0, 96, 3, 2));
  EXPECT_FALSE(can(WeightType::kQ8_0, 64, 4, 3)) << "16 values of a block of 32";
  EXPECT_TRUE(can(WeightType::kQ8_0, 64, 4, 2));
  EXPECT_TRUE(can(WeightType::kQ4_K, 2048, 8, 8)) << "4 query heads of 64 per KV head";
  EXPECT_FALSE(can(WeightType::kQ4_K, 768, 4, 2)) << "3 of them";
  EXPECT_FALSE(can(WeightType::kF32, 48, 2, 3)) << "nothing left for the third";
  EXPECT_FALSE(can(WeightType::kF32, 48, 5, 2)) << "three are in no unit";
}

TEST(CanShareInputsTest, TakesHeadsThatSeveralRanksRead) {
  const auto can = [](WeightType type, int64_t head_dim, int ranks) {
    return CanShareInputs({.type = type, .rows = 1, .cols = 8 * head_dim},
                          ByQueryHeads(8, 2, head_dim), ranks);
  };
  for (const int ranks : {2, 3, 5, 8}) EXPECT_TRUE(can(WeightType::kQ8_0, 32, ranks)) << ranks;
  EXPECT_TRUE(can(WeightType::kQ8_0, 16, 4)) << "two heads each";
  EXPECT_FALSE(can(WeightType::kQ8_0, 16, 6)) << "one head, half a block";
  EXPECT_FALSE(can(WeightType::kF32, 16, 9)) << "nothing left for one";
  EXPECT_FALSE(
      CanShareInputs({.type = WeightType::kF32, .rows = 1, .cols = 32}, ByKvHeads(2, 16), 3))
      << "the first head is on two ranks";
}

}  // namespace
}  // namespace loopserve::worker
