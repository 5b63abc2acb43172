// The oracle itself is held to numbers worked out by hand.
#include "worker/backend/reference/reference.h"

#include <cmath>

#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using testing::StatusIs;

struct Values {
  std::vector<float> v;
  int64_t rows;
  TensorView view() {
    const int64_t cols = static_cast<int64_t>(v.size()) / rows;
    return {v.data(), rows, cols, cols};
  }
};

class ReferenceTest : public ::testing::Test {
 protected:
  const std::unique_ptr<Backend> backend_ = *CreateReferenceBackend({});
  std::unique_ptr<Matrix> Load(const std::vector<float>& values, int64_t rows, RowRange range) {
    const WeightView weight{WeightType::kF32, rows, static_cast<int64_t>(values.size()) / rows,
                            std::as_bytes(std::span(values))};
    return *backend_->LoadMatrix(weight, range);
  }
};

TEST_F(ReferenceTest, MatMulOfARowRange) {
  const auto matrix = Load({1, 2, 3, 4, 5, 6}, 3, {1, 3});
  Values x{{1, 10, 2, 20}, 2};
  Values out{{0, 0, 0, 0}, 2};
  const Matrix* weights[] = {matrix.get()};
  const TensorView outs[] = {out.view()};
  ASSERT_OK(backend_->MatMul(x.view(), weights, outs));
  EXPECT_THAT(out.v, ElementsAre(43, 65, 86, 130));
}

TEST_F(ReferenceTest, NormSiluAndRope) {
  Values x{{3, 4}, 1};
  Values weight{{1, 2}, 1};
  Values out{{0, 0}, 1};
  ASSERT_OK(backend_->RmsNorm(x.view(), weight.view(), 0, out.view()));
  const float scale = 1 / std::sqrt(12.5f);
  EXPECT_THAT(out.v, ElementsAre(FloatNear(3 * scale, 1e-6), FloatNear(8 * scale, 1e-6)));

  Values gate{{0, 1}, 1};
  Values up{{5, 2}, 1};
  ASSERT_OK(backend_->SiluMul(gate.view(), up.view()));
  EXPECT_THAT(gate.v, ElementsAre(0, FloatNear(2 / (1 + std::exp(-1.0f)), 1e-6)));

  // A quarter turn at position 1; interleaved turns neighbours, the other order turns halves.
  const double quarter = std::acos(-1.0) / 2;
  for (const bool interleaved : {true, false}) {
    const auto table = *backend_->MakeRopeTable(
        {.inv_freq = {quarter, 0}, .interleaved = interleaved, .max_positions = 4});
    Values q{{1, 2, 3, 4}, 1};
    const int32_t positions[] = {1};
    ASSERT_OK(backend_->Rope(q.view(), 1, positions, *table));
    if (interleaved) {
      EXPECT_THAT(q.v, ElementsAre(FloatNear(-2, 1e-6), FloatNear(1, 1e-6), 3, 4));
    } else {
      EXPECT_THAT(q.v, ElementsAre(FloatNear(-3, 1e-6), 2, FloatNear(1, 1e-6), 4));
    }
    const int32_t beyond[] = {4};
    EXPECT_THAT(backend_->Rope(q.view(), 1, beyond, *table),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

class ReferenceAttentionTest : public ReferenceTest {
 protected:
  // Three keys, whose scores with q = (1) are ln 1, ln 2, ln 3 at scale 1; values 10, 20, 30.
  ReferenceAttentionTest() {
    const kvstore::KvShape shape{.layers = 1,
                                 .kv_heads = 1,
                                 .head_dim = 1,
                                 .block_tokens = 2,
                                 .dtype = kvstore::KvDtype::kF32};
    pool_ = *kvstore::KvBlockPool::Create(shape, 2, {{&backend_->memory(), 0, 1}});
    handles_ = {*pool_->Allocate(), *pool_->Allocate()};
    for (const auto& handle : handles_) ids_.push_back(handle.id());
    Values k{{0, std::log(2.0f), std::log(3.0f)}, 3};
    Values v{{10, 20, 30}, 3};
    const AttentionSequence all[] = {{.first_row = 0, .rows = 3, .kv_tokens = 3, .blocks = ids_}};
    EXPECT_OK(backend_->AppendKv(0, k.view(), v.view(), all, pool_->arena(0)));
  }
  std::vector<float> Attend(int64_t rows, const LinePlan* lines, const WorkingSet* set) {
    Values q{std::vector<float>(static_cast<size_t>(rows), 1), rows};
    Values out{std::vector<float>(static_cast<size_t>(rows)), rows};
    const AttentionSequence sequence[] = {{.first_row = 0,
                                           .rows = rows,
                                           .kv_tokens = 3,
                                           .blocks = ids_,
                                           .lines = lines,
                                           .working_set = set}};
    EXPECT_OK(backend_->Attention({.layer = 0,
                                   .q_heads = 1,
                                   .scale = 1,
                                   .q = q.view(),
                                   .kv = &pool_->arena(0),
                                   .sequences = sequence,
                                   .out = out.view()}));
    return out.v;
  }
  std::unique_ptr<kvstore::KvBlockPool> pool_;
  std::vector<kvstore::BlockHandle> handles_;
  std::vector<common::BlockId> ids_;
};

TEST_F(ReferenceAttentionTest, DenseIsCausal) {
  const auto near = [](double x) { return FloatNear(static_cast<float>(x), 1e-5); };
  EXPECT_THAT(Attend(3, nullptr, nullptr), ElementsAre(near(10), near(50.0 / 3), near(140.0 / 6)));
  EXPECT_THAT(Attend(1, nullptr, nullptr), ElementsAre(near(140.0 / 6)));
}

TEST_F(ReferenceAttentionTest, PlansNarrowTheKeys) {
  const auto near = [](double x) { return FloatNear(static_cast<float>(x), 1e-5); };
  const LinePlan lines{{{.verticals = {0}, .slashes = {0}}}};
  EXPECT_THAT(Attend(3, &lines, nullptr), ElementsAre(near(10), near(50.0 / 3), near(100.0 / 4)));
  const WorkingSet set{{{1}}, 2};
  EXPECT_THAT(Attend(1, nullptr, &set), ElementsAre(near(130.0 / 5)));
}

}  // namespace
}  // namespace loopserve::worker
