#include "worker/backend/cpu/matmul.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/conformance/backend_data.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cpu/cpu_isa.h"

namespace loopserve::worker::cpu {
namespace {

using ::loopserve::testing::Host;
using ::loopserve::testing::Random;
using ::loopserve::testing::RandomMatrix;

// Enough rows that a panel's are cut into several parts, several matrices, more threads than parts
// would need: the same bits as one row at a time on one thread.
TEST(MatMulRunnerTest, CutsWorkWithoutChangingBits) {
  const auto memory = kvstore::CreateHostMemory();
  ASSERT_OK_AND_ASSIGN(const Kernels* kernels, SelectKernels("auto"));
  Random random(1);
  const int64_t cols = 64;
  const int64_t rows = 250;
  std::vector<float> x = random.Normals(static_cast<size_t>(rows * cols));
  const auto a = RandomMatrix(WeightType::kQ4_1, 50, cols, random);
  const auto b = RandomMatrix(WeightType::kF16, 33, cols, random);

  WorkCrew alone(1);
  const auto packed_a = *PackedMatrix::Pack(a.view, {0, 50}, *memory, alone);
  const auto packed_b = *PackedMatrix::Pack(b.view, {0, 33}, *memory, alone);
  const Matrix* weights[] = {packed_a.get(), packed_b.get()};
  std::vector<float> want_a(static_cast<size_t>(rows * 50)), want_b(static_cast<size_t>(rows * 33));
  MatMulRunner one(*kernels, alone);
  for (int64_t r = 0; r < rows; ++r) {
    const TensorView outs[] = {Host(want_a, rows).Rows(r, 1), Host(want_b, rows).Rows(r, 1)};
    one.Run(Host(x, rows).Rows(r, 1), weights, outs);
  }
  for (const int threads : {1, 2, 7, 17}) {
    // As if on three NUMA nodes; one of 17 has no panel of the smaller matrix at home.
    std::vector<int> nodes;
    for (int i = 0; i < threads; ++i) nodes.push_back(i < 15 ? i % 2 : 2);
    WorkCrew crew(threads, {}, nodes);
    const auto near_a = *PackedMatrix::Pack(a.view, {0, 50}, *memory, crew);
    const auto near_b = *PackedMatrix::Pack(b.view, {0, 33}, *memory, crew);
    const Matrix* weights[] = {near_a.get(), near_b.get()};
    MatMulRunner runner(*kernels, crew);
    std::vector<float> got_a(want_a.size()), got_b(want_b.size());
    const TensorView outs[] = {Host(got_a, rows), Host(got_b, rows)};
    runner.Run(Host(x, rows), weights, outs);
    EXPECT_EQ(got_a, want_a) << threads;
    EXPECT_EQ(got_b, want_b) << threads;
  }
}

// More rows than one part takes, of formats that are unpacked for many rows and that are not; and
// so many columns that a part takes few: on every instruction set the bits of one row at a time.
TEST(MatMulRunnerTest, WideMatricesAndManyPartsHaveTheBitsOfOneRow) {
  const auto memory = kvstore::CreateHostMemory();
  for (const Isa& isa : AllIsas()) {
    if (!isa.available()) continue;
    for (const int64_t cols : {2048, 3584, 4096}) {
      Random random(1);
      const int64_t rows = 190;
      std::vector<float> x = random.Normals(static_cast<size_t>(rows * cols));
      WorkCrew crew(2);
      MatMulRunner runner(isa.kernels(), crew), alone(isa.kernels(), crew);
      for (const WeightType type : {WeightType::kQ4_1, WeightType::kQ8_0}) {
        const auto file = RandomMatrix(type, 37, cols, random);
        const auto packed = *PackedMatrix::Pack(file.view, {0, 37}, *memory, crew);
        const Matrix* weights[] = {packed.get()};
        std::vector<float> got(static_cast<size_t>(rows * 37)), want(got.size());
        const TensorView outs[] = {Host(got, rows)};
        runner.Run(Host(x, rows), weights, outs);
        for (const int64_t r :
             {int64_t{0}, int64_t{1}, int64_t{47}, int64_t{95}, int64_t{96}, rows - 1}) {
          const TensorView row[] = {Host(want, rows).Rows(r, 1)};
          alone.Run(Host(x, rows).Rows(r, 1), weights, row);
          const auto at = [&](std::vector<float>& values) {
            return std::vector<float>(values.begin() + r * 37, values.begin() + (r + 1) * 37);
          };
          EXPECT_EQ(at(got), at(want)) << isa.name << " " << cols << " columns, row " << r;
        }
      }
    }
  }
}

TEST(MatMulRunnerTest, NoRowsAndNoWeightsAreNoWork) {
  ASSERT_OK_AND_ASSIGN(const Kernels* kernels, SelectKernels("auto"));
  WorkCrew crew(2);
  MatMulRunner runner(*kernels, crew);
  std::vector<float> x(64, 1.0f);
  runner.Run(Host(x, 1), {}, {});
  const auto memory = kvstore::CreateHostMemory();
  Random random(1);
  const auto file = RandomMatrix(WeightType::kQ8_0, 4, 64, random);
  const auto packed = *PackedMatrix::Pack(file.view, {0, 4}, *memory, crew);
  const Matrix* weights[] = {packed.get()};
  std::vector<float> out(4, 7.0f);
  const TensorView outs[] = {Host(out, 1).Rows(0, 0)};
  runner.Run(Host(x, 1).Rows(0, 0), weights, outs);
  EXPECT_EQ(out, std::vector<float>(4, 7.0f));
}

}  // namespace
}  // namespace loopserve::worker::cpu
