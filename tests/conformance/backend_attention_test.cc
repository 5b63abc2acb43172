// Attention and the KV it reads, of every backend on every instruction set: against the reference,
// and bit for bit against itself however a prompt is cut into steps.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/conformance/backend_data.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/backend.h"

namespace loopserve::worker {
namespace {

using kvstore::KvDtype;
using ::loopserve::testing::Candidate;
using ::loopserve::testing::Candidates;
using ::loopserve::testing::ExpectSameBits;
using ::loopserve::testing::MakeBackend;
using ::loopserve::testing::PagedKv;
using ::loopserve::testing::Random;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::Tensor;

struct Shape {
  int32_t kv_heads;
  int32_t group;
  int32_t head_dim;
  int32_t block_tokens;
  KvDtype dtype;
};

std::string Describe(const Shape& s) {
  return absl::StrCat("kv_heads ", s.kv_heads, " group ", s.group, " head_dim ", s.head_dim,
                      " block_tokens ", s.block_tokens, " ", kvstore::DtypeName(s.dtype));
}

// One sequence's activations, computed once and then fed in pieces.
struct Inputs {
  int64_t tokens;
  std::vector<float> q, k, v;
};

Inputs MakeInputs(const Shape& s, int64_t tokens, uint32_t seed) {
  Random random(seed);
  const auto kv = static_cast<size_t>(tokens * s.kv_heads * s.head_dim);
  Inputs in{tokens, random.Normals(kv * static_cast<size_t>(s.group)), random.Normals(kv),
            random.Normals(kv)};
  // Peaked weights, so that a wrong key shows; and such that no backend rounds queries.
  for (float& q : in.q) q = Bf16ToFloat(FloatToBf16(2 * q));
  return in;
}

struct Plan {
  const LinePlan* lines = nullptr;
  const WorkingSet* working_set = nullptr;
};

// Runs a sequence in steps of the given sizes and returns the outputs of all its rows.
class Runner {
 public:
  Runner(Backend& backend, const Shape& shape, int64_t tokens)
      : backend_(backend),
        shape_(shape),
        kv_(backend,
            {.layers = 2,
             .kv_heads = shape.kv_heads,
             .head_dim = shape.head_dim,
             .block_tokens = shape.block_tokens,
             .dtype = shape.dtype},
            static_cast<uint32_t>(tokens / shape.block_tokens / 7 * 7 + 8)) {}

  struct Piece {
    const Inputs* in;
    std::vector<common::BlockId> blocks;
    int64_t done = 0;
    std::vector<float> out = {};
  };
  Piece Open(const Inputs& in) { return {&in, kv_.Take(in.tokens)}; }
  const kvstore::KvArena& arena() const { return kv_.arena(); }
  std::vector<std::byte> Read(common::BlockId block) const { return kv_.Read(block); }

  // One step over several sequences: rows[i] new rows of pieces[i].
  void Step(std::vector<Piece>& pieces, const std::vector<int64_t>& rows, const Plan& plan = {}) {
    const int64_t kv_cols = int64_t{shape_.kv_heads} * shape_.head_dim;
    const int64_t q_cols = kv_cols * shape_.group;
    std::vector<float> q, k, v;
    std::vector<AttentionSequence> sequences;
    int64_t total = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
      Piece& p = pieces[i];
      Append(q, p.in->q, p.done * q_cols, rows[i] * q_cols);
      Append(k, p.in->k, p.done * kv_cols, rows[i] * kv_cols);
      Append(v, p.in->v, p.done * kv_cols, rows[i] * kv_cols);
      sequences.push_back({.first_row = total,
                           .rows = rows[i],
                           .kv_tokens = p.done + rows[i],
                           .blocks = p.blocks,
                           .lines = plan.lines,
                           .working_set = plan.working_set});
      total += rows[i];
    }
    Tensor tq(backend_, total, q_cols, q);
    Tensor tk(backend_, total, kv_cols, k);
    Tensor tv(backend_, total, kv_cols, v);
    Tensor out(backend_, total, q_cols);
    ASSERT_OK(backend_.AppendKv(1, tk.view(), tv.view(), sequences, kv_.arena()));
    AttentionArgs args{.layer = 1,
                       .q_heads = shape_.kv_heads * shape_.group,
                       .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                       .q = tq.view(),
                       .kv = &kv_.arena(),
                       .sequences = sequences,
                       .out = out.view()};
    ASSERT_OK(backend_.Attention(args));
    const auto values = out.Read();
    for (size_t i = 0; i < pieces.size(); ++i) {
      Append(pieces[i].out, values, sequences[i].first_row * q_cols, rows[i] * q_cols);
      pieces[i].done += rows[i];
    }
  }

 private:
  static void Append(std::vector<float>& to, const std::vector<float>& from, int64_t at,
                     int64_t n) {
    to.insert(to.end(), from.begin() + at, from.begin() + at + n);
  }
  Backend& backend_;
  const Shape shape_;
  PagedKv kv_;
};

std::vector<float> RunInChunks(Backend& backend, const Shape& shape, const Inputs& in,
                               int64_t chunk, const Plan& plan = {}) {
  Runner runner(backend, shape, in.tokens);
  std::vector<Runner::Piece> pieces = {runner.Open(in)};
  while (pieces[0].done < in.tokens) {
    runner.Step(pieces, {std::min(chunk, in.tokens - pieces[0].done)}, plan);
  }
  return pieces[0].out;
}

void ExpectClose(const std::vector<float>& got, const std::vector<float>& want,
                 const std::string& what, double tolerance = 5e-6) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], tolerance) << what << " at " << i;
  }
}

const Shape kShapes[] = {
    {3, 3, 64, 32, KvDtype::kBf16},  {1, 1, 64, 16, KvDtype::kBf16},
    {2, 4, 128, 32, KvDtype::kBf16}, {1, 7, 24, 5, KvDtype::kBf16},
    {2, 2, 80, 32, KvDtype::kBf16},  {2, 3, 64, 32, KvDtype::kF32},
    {1, 2, 7, 3, KvDtype::kF32},     {1, 4, 256, 32, KvDtype::kBf16},
    {1, 2, 96, 64, KvDtype::kBf16},  {3, 3, 64, 32, KvDtype::kInt8},
    {1, 7, 24, 5, KvDtype::kInt8},   {2, 2, 80, 32, KvDtype::kInt8},
    {1, 2, 7, 3, KvDtype::kInt8},    {1, 4, 128, 32, KvDtype::kInt8},
    {3, 3, 64, 32, KvDtype::kFp8},   {1, 7, 24, 5, KvDtype::kFp8},
    {2, 2, 80, 32, KvDtype::kFp8},   {1, 2, 7, 3, KvDtype::kFp8},
    {1, 4, 128, 32, KvDtype::kFp8},
};
// What a test of one shape runs on.
constexpr KvDtype kStored[] = {KvDtype::kBf16, KvDtype::kInt8, KvDtype::kFp8};

class AttentionTest : public ::testing::TestWithParam<Candidate> {
 protected:
  void SetUp() override {
    backend_ = MakeBackend(GetParam(), 2);
    if (backend_ == nullptr) {
      std::cout << "\n*** NOT RUN: this machine has no " << GetParam().isa << " ***\n\n";
      GTEST_SKIP() << "no " << GetParam().isa;
    }
    reference_ = MakeBackend({"reference"}, 1);
  }
  // Of two ways to the same result: the same bits, or float32 sums in another order.
  void ExpectSame(const std::vector<float>& got, const std::vector<float>& want,
                  const std::string& what) const {
    if (GetParam().is_exact()) {
      ExpectSameBits(got, want, what);
    } else {
      ExpectClose(got, want, what, 5e-5);
    }
  }
  // Whether sequences may come with a LinePlan or a WorkingSet.
  bool has_plans() const { return GetParam().backend != "cuda"; }
  bool is_reference() const { return GetParam().backend == "reference"; }
  // Against the reference: float32 sums, the longer the less exact; and where weights are rounded,
  // to bf16 or to steps beside int8, that.
  double Tolerance(const Shape& shape, double sums = 5e-6) const {
    const bool rounds = absl::EndsWith(backend_->name(), "-bf16");
    const double weights = shape.dtype == KvDtype::kBf16   ? 0.012
                           : shape.dtype == KvDtype::kInt8 ? 0.001
                                                           : 0;
    return sums + 2e-8 * shape.head_dim + (rounds ? weights : 0);
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> reference_;
};

// Activations of 8 bits change products with weights only: attention is that of the same with 16.
std::vector<Candidate> AttentionCandidates() {
  std::vector<Candidate> out = Candidates();
  std::erase_if(out, [](const Candidate& c) { return absl::EndsWith(c.isa, "-int8"); });
  return out;
}

INSTANTIATE_TEST_SUITE_P(All, AttentionTest, ::testing::ValuesIn(AttentionCandidates()),
                         [](const auto& info) {
                           return absl::StrReplaceAll(
                               absl::StrCat(info.param.backend, "_", info.param.isa), {{"-", "_"}});
                         });

TEST_P(AttentionTest, DenseMatchesTheReference) {
  if (is_reference()) GTEST_SKIP() << "the reference is the oracle";
  for (const Shape& shape : kShapes) {
    for (const int64_t tokens : {1, 2, 63, 64, 65, 200}) {
      const Inputs in = MakeInputs(shape, tokens, static_cast<uint32_t>(tokens));
      ExpectClose(RunInChunks(*backend_, shape, in, tokens),
                  RunInChunks(*reference_, shape, in, tokens),
                  absl::StrCat(Describe(shape), " tokens ", tokens), Tolerance(shape));
    }
  }
}

// What is stored is the same on every backend, so a session may go from one to another.
TEST_P(AttentionTest, StoresTheBytesOfTheReference) {
  for (const Shape& shape : kShapes) {
    const Inputs in = MakeInputs(shape, 37, 5);
    std::vector<std::byte> stored[2];
    for (Backend* backend : {backend_.get(), reference_.get()}) {
      Runner runner(*backend, shape, in.tokens);
      std::vector<Runner::Piece> pieces = {runner.Open(in)};
      runner.Step(pieces, {in.tokens});
      for (const common::BlockId block : pieces[0].blocks) {
        const std::vector<std::byte> bytes = runner.Read(block);
        auto& to = stored[backend == reference_.get()];
        to.insert(to.end(), bytes.begin(), bytes.end());
      }
    }
    EXPECT_EQ(stored[0], stored[1]) << Describe(shape);
  }
}

TEST_P(AttentionTest, BitsDoNotDependOnTheChunks) {
  for (const Shape& shape : kShapes) {
    const int64_t tokens = is_reference() ? 70 : 150;
    const Inputs in = MakeInputs(shape, tokens, 17);
    const auto whole = RunInChunks(*backend_, shape, in, tokens);
    for (const int64_t chunk : {1, 2, 5, 31, 64, 100}) {
      ExpectSame(RunInChunks(*backend_, shape, in, chunk), whole,
                 absl::StrCat(Describe(shape), " in chunks of ", chunk));
    }
    for (const int threads : {1, 5}) {
      const auto other = MakeBackend(GetParam(), threads);
      ExpectSame(RunInChunks(*other, shape, in, tokens), whole,
                 absl::StrCat(Describe(shape), " threads ", threads));
    }
  }
}

// The query heads `first` ... `first + count - 1` of a sequence, all of which read one KV head.
Inputs HeadsOf(const Inputs& in, const Shape& shape, int32_t first, int32_t count) {
  const auto cut = [&](const std::vector<float>& from, int32_t heads, int32_t begin, int32_t n) {
    std::vector<float> out;
    for (int64_t t = 0; t < in.tokens; ++t) {
      const auto row = from.begin() + t * heads * shape.head_dim;
      out.insert(out.end(), row + begin * shape.head_dim, row + (begin + n) * shape.head_dim);
    }
    return out;
  };
  const int32_t kv_head = first / shape.group;
  return {in.tokens, cut(in.q, shape.kv_heads * shape.group, first, count),
          cut(in.k, shape.kv_heads, kv_head, 1), cut(in.v, shape.kv_heads, kv_head, 1)};
}

// Ranks may share the query heads that read a KV head.
TEST_P(AttentionTest, AHeadsBitsDoNotDependOnWhoReadsItsKeysToo) {
  for (const KvDtype dtype : kvstore::kKvDtypes) {
    const Shape shape{2, 3, 64, 32, dtype};
    const Inputs in = MakeInputs(shape, is_reference() ? 70 : 600, 19);
    const auto run = [&](const Shape& part, const Inputs& inputs) {
      Runner runner(*backend_, part, inputs.tokens);
      std::vector<Runner::Piece> pieces = {runner.Open(inputs)};
      runner.Step(pieces, {inputs.tokens - 6});
      for (const int64_t rows : {1, 5}) runner.Step(pieces, {rows});
      return pieces[0].out;
    };
    const Inputs whole{in.tokens, run(shape, in), in.k, in.v};
    for (const auto& [first, count] : {std::pair{0, 1}, {1, 2}, {0, 2}, {2, 1}, {3, 3}, {5, 1}}) {
      const Shape part{1, count, 64, 32, dtype};
      ExpectSame(run(part, HeadsOf(in, shape, first, count)), HeadsOf(whole, shape, first, count).q,
                 absl::StrCat(Describe(part), " from ", first));
    }
  }
}

// Beyond the length at which a decode step gives ranges of keys to different threads.
TEST_P(AttentionTest, LongContextBitsDoNotDependOnWhoSumsThem) {
  if (is_reference()) GTEST_SKIP() << "slow, and it has no ranges";
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    const Shape shape{1, 3, 64, 32, dtype};
    const int64_t tokens = 1700;
    const Inputs in = MakeInputs(shape, tokens, 23);
    const auto whole = RunInChunks(*backend_, shape, in, tokens);
    ExpectSame(RunInChunks(*backend_, shape, in, 200), whole, "chunks of 200");
    for (const int threads : {1, 2, 4, 9}) {
      const auto other = MakeBackend(GetParam(), threads);
      Runner runner(*other, shape, tokens);
      std::vector<Runner::Piece> pieces = {runner.Open(in)};
      runner.Step(pieces, {1500});
      while (pieces[0].done < 1600) runner.Step(pieces, {1});
      while (pieces[0].done < tokens) runner.Step(pieces, {10});
      ExpectSame(pieces[0].out, whole, absl::StrCat("decode with threads: ", threads));
    }
    // The reference, on the last rows only: it is slow.
    Runner slow(*reference_, shape, tokens);
    std::vector<Runner::Piece> pieces = {slow.Open(in)};
    slow.Step(pieces, {tokens});
    ExpectClose(whole, pieces[0].out, "long context", Tolerance(shape));
  }
}

TEST_P(AttentionTest, RaggedBatchesLeaveEachSequenceItsBits) {
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    const Shape shape{2, 3, 64, 32, dtype};
    const std::vector<Inputs> inputs = {MakeInputs(shape, 1, 1), MakeInputs(shape, 90, 2),
                                        MakeInputs(shape, 33, 3), MakeInputs(shape, 130, 4)};
    Runner runner(*backend_, shape, 400);
    std::vector<Runner::Piece> pieces;
    for (const Inputs& in : inputs) pieces.push_back(runner.Open(in));
    runner.Step(pieces, {1, 89, 0, 64});
    runner.Step(pieces, {0, 1, 20, 1});
    runner.Step(pieces, {0, 0, 13, 65});
    for (size_t i = 0; i < inputs.size(); ++i) {
      ExpectSame(pieces[i].out, RunInChunks(*backend_, shape, inputs[i], inputs[i].tokens),
                 absl::StrCat("sequence ", i));
    }
  }
}

TEST_P(AttentionTest, PeakedAndHugeScoresStayFinite) {
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    const Shape shape{1, 1, 64, 32, dtype};
    Inputs in = MakeInputs(shape, 100, 9);
    for (float& q : in.q) q *= 128;
    const auto got = RunInChunks(*backend_, shape, in, 100);
    for (const float v : got) ASSERT_TRUE(std::isfinite(v));
    // Scores in the thousands, in float32: their last bits are as large as 1e-4. Where queries
    // become steps of 1 / 32639 of their largest, 1000 here, a score may be off by some 1e-2.
    const bool steps = dtype == KvDtype::kInt8 && absl::EndsWith(backend_->name(), "-bf16");
    ExpectClose(got, RunInChunks(*reference_, shape, in, 100), "peaked",
                Tolerance(shape, steps ? 1e-2 : 1e-3));
  }
}

LinePlan RandomLines(const Shape& shape, int64_t tokens, Random& random) {
  LinePlan plan;
  for (int32_t h = 0; h < shape.kv_heads * shape.group; ++h) {
    LinePlan::Head head;
    for (int32_t j = 0; j < tokens; ++j) {
      if (random.Below(8) == 0) head.verticals.push_back(j);
      if (random.Below(8) == 0) head.slashes.push_back(j);
    }
    plan.heads.push_back(head);
  }
  return plan;
}

TEST_P(AttentionTest, LinePlansMatchTheReference) {
  if (!has_plans()) GTEST_SKIP() << "dense attention only";
  if (is_reference()) GTEST_SKIP() << "the reference is the oracle";
  for (const Shape& shape :
       {kShapes[0], kShapes[3], kShapes[9], kShapes[10], kShapes[14], kShapes[15]}) {
    Random random(31);
    const Inputs in = MakeInputs(shape, 150, 31);
    const LinePlan lines = RandomLines(shape, 150, random);
    const Plan plan{.lines = &lines};
    const auto got = RunInChunks(*backend_, shape, in, 150, plan);
    ExpectClose(got, RunInChunks(*reference_, shape, in, 150, plan), "lines", Tolerance(shape));
    ExpectSame(RunInChunks(*backend_, shape, in, 13, plan), got, "lines in chunks");
  }
}

TEST_P(AttentionTest, WorkingSetsMatchTheReference) {
  if (!has_plans()) GTEST_SKIP() << "dense attention only";
  if (is_reference()) GTEST_SKIP() << "the reference is the oracle";
  for (const Shape& shape :
       {kShapes[0], kShapes[3], kShapes[9], kShapes[10], kShapes[14], kShapes[15]}) {
    Random random(37);
    const Inputs in = MakeInputs(shape, 150, 37);
    WorkingSet set;
    set.dense_from = 120;
    for (int32_t h = 0; h < shape.kv_heads; ++h) {
      set.keys.emplace_back();
      for (int32_t j = 0; j < 130; ++j) {
        if (random.Below(3) == 0) set.keys.back().push_back(j);
      }
    }
    const Plan plan{.working_set = &set};
    ExpectClose(RunInChunks(*backend_, shape, in, 150, plan),
                RunInChunks(*reference_, shape, in, 150, plan), "working set", Tolerance(shape));
  }
}

TEST_P(AttentionTest, PlansThatNameEveryKeyAreDenseToTheBit) {
  if (!has_plans()) GTEST_SKIP() << "dense attention only";
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    Shape shape = kShapes[0];
    shape.dtype = dtype;
    const Inputs in = MakeInputs(shape, 600, 41);
    LinePlan lines;
    lines.heads.resize(9);
    WorkingSet set;
    set.keys.resize(3);
    for (int32_t j = 0; j < 600; ++j) {
      for (auto& head : lines.heads) head.verticals.push_back(j);
      for (auto& keys : set.keys) keys.push_back(j);
    }
    set.dense_from = 600;
    WorkingSet older = set;  // the last rows' keys are read because they are new
    older.dense_from = 571;
    const Plan by_lines{.lines = &lines};
    const Plan by_set{.working_set = &set};
    const Plan by_age{.working_set = &older};
    // Only the last rows: the plans are evaluated row by row.
    std::vector<float> results[4];
    int i = 0;
    for (const Plan* plan : {static_cast<const Plan*>(nullptr), &by_lines, &by_set, &by_age}) {
      Runner runner(*backend_, shape, 600);
      std::vector<Runner::Piece> pieces = {runner.Open(in)};
      runner.Step(pieces, {590});
      runner.Step(pieces, {10}, plan != nullptr ? *plan : Plan{});
      results[i++] = pieces[0].out;
    }
    ExpectSame(results[1], results[0], "lines");
    ExpectSame(results[2], results[0], "working set");
    ExpectSame(results[3], results[0], "working set and all that is new");
  }
}

TEST_P(AttentionTest, RowsWithoutKeysAreZero) {
  if (!has_plans()) GTEST_SKIP() << "dense attention only";
  const Shape shape{1, 2, 64, 32, KvDtype::kBf16};
  const Inputs in = MakeInputs(shape, 3, 43);
  LinePlan lines;
  lines.heads.resize(2);
  lines.heads[1].slashes = {2};
  const auto got = RunInChunks(*backend_, shape, in, 3, Plan{.lines = &lines});
  for (size_t i = 0; i < got.size(); ++i) {
    const bool reads = i / 64 == 5;  // row 2, head 1
    EXPECT_EQ(got[i] != 0, reads) << i;
  }
}

TEST_P(AttentionTest, RefusesSequencesThatDoNotFit) {
  PagedKv kv(*backend_, {.layers = 1, .kv_heads = 1, .head_dim = 64}, 3);
  const auto blocks = kv.Take(32);
  Tensor x(*backend_, 4, 64);
  for (const AttentionSequence& bad : {
           AttentionSequence{.first_row = 1, .rows = 4, .kv_tokens = 4, .blocks = blocks},
           AttentionSequence{.first_row = 0, .rows = 4, .kv_tokens = 3, .blocks = blocks},
           AttentionSequence{.first_row = 0, .rows = 4, .kv_tokens = 33, .blocks = blocks},
       }) {
    const AttentionSequence sequences[] = {bad};
    EXPECT_THAT(backend_->AppendKv(0, x.view(), x.view(), sequences, kv.arena()),
                StatusIs(absl::StatusCode::kInvalidArgument));
    const AttentionArgs args{.q_heads = 1,
                             .scale = 1,
                             .q = x.view(),
                             .kv = &kv.arena(),
                             .sequences = sequences,
                             .out = x.view()};
    EXPECT_THAT(backend_->Attention(args), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace loopserve::worker
