// Holds every backend, on every instruction set that this machine has, to the reference backend and
// to row independence: the bits of a row do not depend on its company.
#include "worker/backend/backend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/conformance/backend_data.h"
#include "tests/support/sampling_rows.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::Candidate;
using ::loopserve::testing::Candidates;
using ::loopserve::testing::ExpectSameBits;
using ::loopserve::testing::FileMatrix;
using ::loopserve::testing::MakeBackend;
using ::loopserve::testing::PagedKv;
using ::loopserve::testing::Random;
using ::loopserve::testing::RandomMatrix;
using ::loopserve::testing::RoundedActivations;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::Tensor;

constexpr WeightType kAllTypes[] = {
    WeightType::kF32,  WeightType::kF16,  WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1,
    WeightType::kQ5_0, WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K};

bool IsFloat(WeightType type) { return InfoOf(type).block_values == 1; }

void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double scale = 0;
  for (const float v : want) scale = std::max(scale, std::fabs(double{v}));
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], tolerance * std::max(scale, 1e-30)) << what << " at " << i;
  }
}

class BackendTest : public ::testing::TestWithParam<Candidate> {
 protected:
  void SetUp() override {
    backend_ = MakeBackend(GetParam(), 2);
    if (backend_ == nullptr) {
      std::cout << "\n*** NOT RUN: this machine has no " << GetParam().isa << " ***\n\n";
      GTEST_SKIP() << "no " << GetParam().isa;
    }
    reference_ = MakeBackend({"reference"}, 1);
    ASSERT_NE(reference_, nullptr);
  }
  bool rounds_activations() const { return GetParam().backend == "cpu"; }
  // Of two ways to the same result: the same bits, or what rounding to bf16 leaves.
  void ExpectSame(const std::vector<float>& got, const std::vector<float>& want,
                  const std::string& what) const {
    if (GetParam().is_exact()) {
      ExpectSameBits(got, want, what);
    } else {
      ExpectClose(got, want, 0.01, what);
    }
  }

  std::vector<float> MatMul(Backend& backend, const FileMatrix& weight, RowRange rows,
                            const std::vector<float>& x, int64_t t) {
    auto matrix = backend.LoadMatrix(weight.view, rows);
    EXPECT_OK(matrix);
    Tensor in(backend, t, weight.view.cols, x);
    Tensor out(backend, t, rows.size());
    const Matrix* weights[] = {matrix->get()};
    const TensorView outs[] = {out.view()};
    EXPECT_OK(backend.MatMul(in.view(), weights, outs));
    return out.Read();
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> reference_;
};

INSTANTIATE_TEST_SUITE_P(All, BackendTest, ::testing::ValuesIn(Candidates()), [](const auto& info) {
  return absl::StrReplaceAll(absl::StrCat(info.param.backend, "_", info.param.isa), {{"-", "_"}});
});

TEST_P(BackendTest, NamesItself) {
  EXPECT_TRUE(absl::StartsWith(backend_->name(), GetParam().backend));
  EXPECT_EQ(backend_->memory().host_addressable(), GetParam().backend != "cuda");
}

TEST_P(BackendTest, MatMulMatchesTheReference) {
  struct Case {
    int64_t t, rows, cols;
  };
  for (const WeightType type : kAllTypes) {
    if (!backend_->Supports(type)) continue;
    const int64_t unit = InfoOf(type).block_values;
    const std::vector<Case> cases = {{1, 1, unit},
                                     {1, 33, 3 * unit},
                                     {2, 31, unit},
                                     {3, 64, 2 * unit},
                                     {5, 48, 2 * unit},
                                     {6, 16, unit},
                                     {7, 8, 4 * unit},
                                     {13, 65, 2 * unit},
                                     {0, 32, unit},
                                     {101, 40, 2 * unit},
                                     {4, 96, IsFloat(type) ? 37 : unit}};
    for (const Case& c : cases) {
      Random random(static_cast<uint32_t>(c.t * 1000 + c.rows));
      const std::string what =
          absl::StrCat(InfoOf(type).name, " t=", c.t, " rows=", c.rows, " cols=", c.cols);
      const FileMatrix weight = RandomMatrix(type, c.rows, c.cols, random);
      const std::vector<float> x = random.Normals(static_cast<size_t>(c.t * c.cols));
      const bool rounds = rounds_activations() && !IsFloat(type);
      const auto got = MatMul(*backend_, weight, {0, c.rows}, x, c.t);
      const auto want = MatMul(*reference_, weight, {0, c.rows},
                               rounds ? RoundedActivations(backend_->name(), x) : x, c.t);
      if (GetParam().is_exact()) ExpectClose(got, want, 1e-5, what);
      ExpectClose(got, MatMul(*reference_, weight, {0, c.rows}, x, c.t), 0.02, what);
    }
  }
}

TEST_P(BackendTest, MatMulOfAShardIsThatPartOfTheWhole) {
  Random random(5);
  for (const WeightType type : kAllTypes) {
    const int64_t cols = 2 * std::max(32, InfoOf(type).block_values);
    const FileMatrix weight = RandomMatrix(type, 70, cols, random);
    const std::vector<float> x = random.Normals(static_cast<size_t>(4 * cols));
    const auto whole = MatMul(*backend_, weight, {0, 70}, x, 4);
    for (const RowRange rows : {RowRange{0, 23}, RowRange{23, 47}, RowRange{33, 70}}) {
      const auto part = MatMul(*backend_, weight, rows, x, 4);
      std::vector<float> want;
      for (int64_t t = 0; t < 4; ++t) {
        const auto row = whole.begin() + t * 70;
        want.insert(want.end(), row + rows.begin, row + rows.end);
      }
      ExpectSame(part, want, absl::StrCat(InfoOf(type).name, " from ", rows.begin));
    }
  }
}

TEST_P(BackendTest, MatMulRowsDoNotDependOnEachOther) {
  for (const WeightType type : kAllTypes) {
    Random random(7);
    const int64_t cols = 3 * std::max(32, InfoOf(type).block_values);
    const int64_t rows = 45;
    const int64_t t = 29;
    const FileMatrix weight = RandomMatrix(type, rows, cols, random);
    const std::vector<float> x = random.Normals(static_cast<size_t>(t * cols));
    const auto all = MatMul(*backend_, weight, {0, rows}, x, t);
    for (const int64_t chunk : {1, 2, 3, 4, 5, 6, 7, 8, 11, 13}) {
      std::vector<float> pieces;
      for (int64_t first = 0; first < t; first += chunk) {
        const int64_t n = std::min(chunk, t - first);
        const std::vector<float> part(x.begin() + first * cols, x.begin() + (first + n) * cols);
        const auto out = MatMul(*backend_, weight, {0, rows}, part, n);
        pieces.insert(pieces.end(), out.begin(), out.end());
      }
      ExpectSame(pieces, all, absl::StrCat(InfoOf(type).name, " in chunks of ", chunk));
    }
    for (const int threads : {1, 3}) {
      const auto other = MakeBackend(GetParam(), threads);
      ExpectSame(MatMul(*other, weight, {0, rows}, x, t), all,
                 absl::StrCat(InfoOf(type).name, " with threads: ", threads));
    }
  }
}

TEST_P(BackendTest, MatMulTakesSeveralWeightsAndColumnViews) {
  Random random(11);
  const FileMatrix a = RandomMatrix(WeightType::kQ4_1, 64, 64, random);
  const FileMatrix b = RandomMatrix(WeightType::kF32, 20, 64, random);
  const FileMatrix c = RandomMatrix(WeightType::kQ8_0, 33, 64, random);
  const std::vector<float> x = random.Normals(9 * 64);
  Tensor in(*backend_, 9, 64, x);
  Tensor out(*backend_, 9, 64 + 20 + 33);
  std::vector<std::unique_ptr<Matrix>> owners;
  for (const FileMatrix* m : {&a, &b, &c}) {
    ASSERT_OK_AND_ASSIGN(auto matrix, backend_->LoadMatrix(m->view, {0, m->view.rows}));
    EXPECT_EQ(matrix->rows(), m->view.rows);
    EXPECT_EQ(matrix->cols(), 64);
    EXPECT_GT(matrix->resident_bytes(), 0u);
    owners.push_back(std::move(matrix));
  }
  const Matrix* weights[] = {owners[0].get(), owners[1].get(), owners[2].get()};
  const TensorView outs[] = {out.view().Cols(0, 64), out.view().Cols(64, 20),
                             out.view().Cols(84, 33)};
  ASSERT_OK(backend_->MatMul(in.view(), weights, outs));
  const auto got = out.Read();
  std::vector<float> want(got.size());
  int64_t first = 0;
  for (const FileMatrix* m : {&a, &b, &c}) {
    const auto part = MatMul(*backend_, *m, {0, m->view.rows}, x, 9);
    for (int64_t t = 0; t < 9; ++t) {
      std::copy_n(part.begin() + t * m->view.rows, m->view.rows, want.begin() + t * 117 + first);
    }
    first += m->view.rows;
  }
  ExpectSame(got, want, "three weights");
}

TEST_P(BackendTest, EmbedRowsDecodesExactly) {
  for (const WeightType type : kAllTypes) {
    Random random(3);
    const int64_t cols = 2 * std::max(32, InfoOf(type).block_values);
    const FileMatrix table = RandomMatrix(type, 50, cols, random);
    ASSERT_OK_AND_ASSIGN(auto matrix, backend_->LoadMatrix(table.view, {0, 50}));
    std::vector<float> decoded(static_cast<size_t>(50 * cols));
    ASSERT_OK(DequantizeRows(table.view, 0, decoded));
    const std::vector<common::TokenId> tokens = {49, 0, 31, 32, 7, 7};
    Tensor out(*backend_, 6, cols);
    ASSERT_OK(backend_->EmbedRows(*matrix, 0, tokens, out.view()));
    std::vector<float> want;
    for (const common::TokenId token : tokens) {
      want.insert(want.end(), decoded.begin() + token * cols, decoded.begin() + (token + 1) * cols);
    }
    if (GetParam().is_exact() || !IsFloat(type)) {
      ExpectSameBits(out.Read(), want, std::string(InfoOf(type).name));
    } else {
      ExpectClose(out.Read(), want, 0.005, std::string(InfoOf(type).name));  // kept as bf16
    }
    // As part of a larger vocabulary, from token 31 on: zeros where it has no row.
    ASSERT_OK(backend_->EmbedRows(*matrix, 31, tokens, out.view()));
    const std::vector<float> part = out.Read();
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto row = part.begin() + static_cast<int64_t>(i) * cols;
      if (tokens[i] < 31) {
        EXPECT_TRUE(std::all_of(row, row + cols, [](float value) { return value == 0; })) << i;
      } else {
        const std::vector<common::TokenId> alone = {tokens[i] - 31};
        Tensor whole(*backend_, 1, cols);
        ASSERT_OK(backend_->EmbedRows(*matrix, 0, alone, whole.view()));
        ExpectSameBits(std::vector<float>(row, row + cols), whole.Read(), "of a part");
      }
    }
    const std::vector<common::TokenId> outside = {50, 49, -1, 50, 50, 50};
    ASSERT_OK(backend_->EmbedRows(*matrix, 0, outside, out.view()));
    const std::vector<float> zeros = out.Read();
    EXPECT_EQ(std::count_if(zeros.begin(), zeros.end(), [](float value) { return value != 0; }),
              std::count_if(decoded.end() - cols, decoded.end(), [](float v) { return v != 0; }));
    EXPECT_THAT(backend_->EmbedRows(*matrix, 0, std::span(tokens).first(5), out.view()),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_P(BackendTest, ElementwiseOpsMatchTheReference) {
  for (const int64_t t : {0, 1, 3, 70}) {
    for (const int64_t cols : {1, 15, 64, 576, 1001}) {
      Random random(static_cast<uint32_t>(t + cols));
      const auto size = static_cast<size_t>(t * cols);
      const auto x = random.Normals(size);
      const auto y = random.Normals(size);
      const auto w = random.Normals(static_cast<size_t>(cols));
      const std::string what = absl::StrCat("t=", t, " cols=", cols);
      std::vector<std::vector<float>> results[2];
      int side = 0;
      for (Backend* b : {reference_.get(), backend_.get()}) {
        auto& out = results[side++];
        Tensor a(*b, t, cols, x);
        Tensor c(*b, t, cols, y);
        Tensor weight(*b, 1, cols, w);
        Tensor normed(*b, t, cols);
        ASSERT_OK(b->RmsNorm(a.view(), weight.view(), 1e-5f, normed.view()));
        out.push_back(normed.Read());
        ASSERT_OK(b->AddRmsNorm(a.view(), c.view(), weight.view(), 1e-5f, normed.view()));
        out.push_back(a.Read());
        out.push_back(normed.Read());
        ASSERT_OK(b->RmsNorm(a.view(), weight.view(), 1e-5f, a.view()));
        out.push_back(a.Read());
        ASSERT_OK(b->AddBias(a.view(), weight.view()));
        out.push_back(a.Read());
        ASSERT_OK(b->Add(a.view(), c.view()));
        out.push_back(a.Read());
        ASSERT_OK(b->SiluMul(a.view(), c.view()));
        out.push_back(a.Read());
        ASSERT_OK(b->Synchronize());
      }
      for (size_t i = 0; i < results[0].size(); ++i) {
        ExpectClose(results[1][i], results[0][i], 1e-5, absl::StrCat(what, " op ", i));
      }
    }
  }
}

TEST_P(BackendTest, SiluSurvivesExtremes) {
  const std::vector<float> x = {-1e4f, -100, -88, -20, -1e-8f, 0, 1e-8f, 20, 88, 100, 1e4f};
  const auto n = static_cast<int64_t>(x.size());
  Tensor gate(*backend_, 1, n, x);
  Tensor up(*backend_, 1, n, std::vector<float>(x.size(), 1.0f));
  ASSERT_OK(backend_->SiluMul(gate.view(), up.view()));
  const auto got = gate.Read();
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = double{x[i]} / (1 + std::exp(-double{x[i]}));
    EXPECT_NEAR(got[i], want, 1e-6 * std::fabs(want) + 1e-30) << x[i];
  }
}

TEST_P(BackendTest, RopeMatchesTheReference) {
  for (const bool interleaved : {true, false}) {
    for (const int64_t head_dim : {2, 24, 64, 80, 128}) {
      for (const int64_t rotated : {head_dim, head_dim / 2 / 2 * 2}) {
        Random random(static_cast<uint32_t>(head_dim));
        RopeSpec spec{.interleaved = interleaved, .scale = 1.1, .max_positions = 5000};
        for (int64_t i = 0; i < rotated / 2; ++i) {
          spec.inv_freq.push_back(std::pow(1e4, -2.0 * static_cast<double>(i) / 64));
        }
        const std::vector<int32_t> positions = {0, 1, 17, 4999, 17};
        const auto x = random.Normals(static_cast<size_t>(5 * 3 * head_dim));
        std::vector<float> results[2];
        int side = 0;
        for (Backend* b : {reference_.get(), backend_.get()}) {
          Tensor t(*b, 5, 3 * head_dim, x);
          ASSERT_OK_AND_ASSIGN(auto table, b->MakeRopeTable(spec));
          ASSERT_OK(b->Rope(t.view(), 3, positions, *table));
          results[side++] = t.Read();
          const std::vector<int32_t> outside = {0, 0, 0, 0, 5000};
          EXPECT_THAT(b->Rope(t.view(), 3, outside, *table),
                      StatusIs(absl::StatusCode::kInvalidArgument));
        }
        ExpectClose(results[1], results[0], 1e-6,
                    absl::StrCat("head_dim ", head_dim, " rotated ", rotated));
      }
    }
  }
}

TEST_P(BackendTest, OneRowOfOneHeadAndNoRowsAtAll) {
  Random random(1);
  const RopeSpec spec{.inv_freq = {1.0}, .max_positions = 8};
  const auto x = random.Normals(2);
  std::vector<float> results[2];
  int side = 0;
  for (Backend* b : {reference_.get(), backend_.get()}) {
    ASSERT_OK_AND_ASSIGN(auto table, b->MakeRopeTable(spec));
    Tensor one(*b, 1, 2, x);
    ASSERT_OK(b->Rope(one.view(), 1, std::vector<int32_t>{7}, *table));
    results[side++] = one.Read();
    Tensor none(*b, 0, 2);
    ASSERT_OK(b->Rope(none.view(), 1, {}, *table));
    ASSERT_OK(b->GatherRows(one.view(), {}, none.view()));
    const FileMatrix embedding = RandomMatrix(WeightType::kF32, 5, 2, random);
    ASSERT_OK_AND_ASSIGN(auto matrix, b->LoadMatrix(embedding.view, {0, 5}));
    ASSERT_OK(b->EmbedRows(*matrix, 0, {}, none.view()));
    EXPECT_TRUE(none.Read().empty());
  }
  ExpectClose(results[1], results[0], 1e-6, "one row of one head");
}

TEST_P(BackendTest, GatherRowsAndCopies) {
  Random random(1);
  const auto x = random.Normals(7 * 33);
  Tensor in(*backend_, 7, 33, x);
  Tensor out(*backend_, 3, 33);
  const std::vector<int32_t> rows = {6, 0, 6};
  ASSERT_OK(backend_->GatherRows(in.view(), rows, out.view()));
  std::vector<float> want;
  for (const int32_t r : rows)
    want.insert(want.end(), x.begin() + r * 33, x.begin() + (r + 1) * 33);
  ExpectSameBits(out.Read(), want, "gather");
  const std::vector<int32_t> outside = {7, 0, 0};
  EXPECT_THAT(backend_->GatherRows(in.view(), outside, out.view()),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_P(BackendTest, SampleChoosesTheSameTokensBitByBit) {
  for (const int64_t rows : {0, 1, 33}) {
    for (const int64_t vocab : {1, 2, 31, 128256}) {
      SamplingPlan plan;
      std::vector<float> logits;
      for (uint32_t r = 0; r < static_cast<uint32_t>(rows); ++r) {
        plan.rows.push_back(testing::AnySampling(r + static_cast<uint32_t>(vocab)));
        plan.rows.back().first_adjustment = r;
        plan.rows.back().adjustments = r % 2;
        const auto token = static_cast<common::TokenId>(r % static_cast<uint32_t>(vocab));
        plan.adjustments.push_back({.token = token, .bias = 3, .repetition = 1.1F, .penalty = 1});
        const auto row = testing::SampledLogits(static_cast<size_t>(vocab), r);
        logits.insert(logits.end(), row.begin(), row.end());
      }
      const auto choose = [&](Backend& backend, TensorView view) {
        auto region = backend.memory().AllocateHost(64 * sizeof(RowChoice));
        EXPECT_OK(region);
        const std::span out(reinterpret_cast<RowChoice*>((*region)->data()), plan.rows.size());
        EXPECT_OK(backend.Sample(view, plan.view(), out));
        EXPECT_OK(backend.Synchronize());
        return std::vector<RowChoice>(out.begin(), out.end());
      };
      // Rows of a wider buffer.
      Tensor wide(*backend_, rows, vocab + 3);
      ASSERT_OK(backend_->CopyFromHost(logits, wide.view().Cols(0, vocab)));
      Tensor expected(*reference_, rows, vocab, logits);
      const auto got = choose(*backend_, wide.view().Cols(0, vocab));
      const auto want = choose(*reference_, expected.view());
      for (size_t r = 0; r < got.size(); ++r) {
        EXPECT_EQ(testing::Difference(plan.rows[r], got[r], want[r]), "")
            << vocab << " tokens, row " << r << ", " << testing::WordsOf(plan.rows[r]);
      }
    }
  }
}

TEST_P(BackendTest, RefusesShapesThatDoNotFit) {
  Random random(1);
  const FileMatrix weight = RandomMatrix(WeightType::kQ8_0, 8, 64, random);
  EXPECT_THAT(backend_->LoadMatrix(weight.view, {4, 9}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  WeightView odd = weight.view;
  odd.cols = 63;
  EXPECT_THAT(backend_->LoadMatrix(odd, {0, 8}), StatusIs(absl::StatusCode::kInvalidArgument));
  WeightView truncated = weight.view;
  truncated.data = truncated.data.first(truncated.data.size() - 1);
  EXPECT_THAT(backend_->LoadMatrix(truncated, {0, 8}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_OK_AND_ASSIGN(auto matrix, backend_->LoadMatrix(weight.view, {0, 8}));
  Tensor x(*backend_, 2, 32);
  Tensor out(*backend_, 2, 8);
  const Matrix* weights[] = {matrix.get()};
  const TensorView outs[] = {out.view()};
  EXPECT_THAT(backend_->MatMul(x.view(), weights, outs),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(backend_->Add(x.view(), out.view()), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::worker
