#include "bench/timed_backend.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/rank_group.h"

namespace loopserve::bench {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::StatusIs;
using worker::Backend;
using worker::GgufFile;
using worker::Matrix;
using worker::ModelConfig;
using worker::RankGroup;
using worker::StepPlan;
using worker::TensorView;

constexpr absl::Duration kTick = absl::Milliseconds(1);
constexpr worker::ModelOptions kSizes = {.max_step_tokens = 32, .max_logit_rows = 4};

// Each look at it is one tick later than the one before, so that a call takes one, however fast.
class TickingClock final : public common::Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + ++looks_ * kTick; }

 private:
  mutable int64_t looks_ = 0;
};

std::unique_ptr<Backend> Reference() {
  return *worker::CreateBackend({.name = "reference", .threads = 1});
}

std::unique_ptr<GgufFile> TinyFile(const std::string& preset) {
  return *GgufFile::Open(::loopserve::testing::WriteTempModel(*FindPreset(preset)));
}

std::unique_ptr<RankGroup> OneRank(const GgufFile& file, std::unique_ptr<Backend> backend) {
  const ModelConfig config = *worker::ReadModelConfig(file);
  auto pool = *kvstore::KvBlockPool::Create(worker::KvShapeOf(config, kvstore::KvDtype::kBf16, 8),
                                            8, {{&backend->memory(), 0, config.kv_heads}});
  std::vector<RankGroup::Rank> ranks(1);
  ranks[0].model = *worker::LoadModel(file, config, {}, *backend, kSizes);
  ranks[0].backend = std::move(backend);
  return *RankGroup::Assemble(std::move(ranks), std::move(pool), absl::Seconds(30),
                              common::Logger::Null());
}

// Tokens 0 ... rows - 1 behind `history`, logits of the last.
std::vector<float> Step(RankGroup& ranks, int64_t rows, int64_t history = 0) {
  auto plan = std::make_shared<StepPlan>();
  plan->parts.push_back({.rows = rows, .kv_tokens = history + rows});
  for (uint32_t b = 0; b < 8; ++b) plan->parts[0].blocks.emplace_back(b);
  for (int64_t i = 0; i < rows; ++i) {
    plan->tokens.push_back(static_cast<common::TokenId>(i));
    plan->positions.push_back(static_cast<int32_t>(history + i));
  }
  plan->logit_rows = {static_cast<int32_t>(rows - 1)};
  const TensorView logits = ranks.Run(plan)->logits;
  return {logits.data, logits.data + logits.cols};
}

// A rank whose backend is timed.
struct Timed {
  explicit Timed(const GgufFile& file) {
    auto owned = std::make_unique<TimedBackend>(Reference(), clock);
    backend = owned.get();
    ranks = OneRank(file, std::move(owned));
  }
  TickingClock clock;
  TimedBackend* backend;
  std::unique_ptr<RankGroup> ranks;
};

TEST(TimedBackend, ComputesWhatTheOtherBackendDoes) {
  const auto file = TinyFile("biased");
  Timed timed(*file);
  auto plain = OneRank(*file, Reference());
  EXPECT_EQ(Step(*timed.ranks, 9), Step(*plain, 9));
  EXPECT_EQ(Step(*timed.ranks, 3, 9), Step(*plain, 3, 9));
  EXPECT_EQ(timed.ranks->backend_name(), plain->backend_name());
}

TEST(TimedBackend, LoadingCopiesAndWaitsButComputesNothing) {
  const auto file = TinyFile("gqa");
  const Timed timed(*file);
  EXPECT_GT(timed.backend->totals(Op::kOther).calls, 0);
  EXPECT_EQ(timed.backend->total(), timed.backend->totals(Op::kOther).wall);
}

TEST(TimedBackend, NamesEachMatrixProductByItsPlaceInTheLayer) {
  const auto file = TinyFile("gqa");
  const int64_t layers = worker::ReadModelConfig(*file)->layers;
  Timed timed(*file);
  timed.backend->Reset();
  Step(*timed.ranks, 9);
  const auto calls = [&](Op op) { return timed.backend->totals(op).calls; };
  for (const Op op : {Op::kQkv, Op::kAppendKv, Op::kAttention, Op::kAttentionOutput, Op::kGateUp,
                      Op::kSilu, Op::kDown}) {
    EXPECT_EQ(calls(op), layers) << OpName(op);
  }
  EXPECT_EQ(calls(Op::kEmbed), 1);
  EXPECT_EQ(calls(Op::kHead), 1);
  EXPECT_EQ(calls(Op::kRope), 2 * layers);
  EXPECT_EQ(calls(Op::kNorm), 2 * layers + 1);
  EXPECT_EQ(calls(Op::kOther), 3);  // two of GatherRows, one of Synchronize
}

TEST(TimedBackend, TheTimesOfAllOperationsAddUp) {
  const auto file = TinyFile("biased");
  Timed timed(*file);
  timed.backend->Reset();
  Step(*timed.ranks, 9);
  absl::Duration sum;
  for (int i = 0; i < kOps; ++i) {
    const OpTotals& totals = timed.backend->totals(static_cast<Op>(i));
    EXPECT_EQ(totals.wall, totals.calls * kTick) << OpName(static_cast<Op>(i));
    sum += totals.wall;
  }
  EXPECT_EQ(timed.backend->total(), sum);
  EXPECT_GT(sum, absl::ZeroDuration());
  timed.backend->Reset();
  EXPECT_EQ(timed.backend->total(), absl::ZeroDuration());
}

TEST(TimedBackend, CountsWhatProductsAndAttentionHaveToDo) {
  const auto file = TinyFile("gqa");
  const ModelConfig c = *worker::ReadModelConfig(*file);
  Timed timed(*file);
  Step(*timed.ranks, 9);
  timed.backend->Reset();
  Step(*timed.ranks, 3, 9);
  const double rows = 3, layers = c.layers, q = c.q_heads * c.head_dim;
  const double kv = c.kv_heads * c.head_dim;
  const auto flops = [&](Op op) { return timed.backend->totals(op).operations; };
  EXPECT_EQ(flops(Op::kQkv), 2 * rows * layers * (q + 2 * kv) * c.hidden);
  EXPECT_EQ(flops(Op::kAttentionOutput), 2 * rows * layers * q * c.hidden);
  // After the last layer's attention there is only the row whose logits are wanted.
  EXPECT_EQ(flops(Op::kGateUp), 2 * (rows * (layers - 1) + 1) * 2 * c.ffn * c.hidden);
  EXPECT_EQ(flops(Op::kHead), 2.0 * c.vocab * c.hidden);
  EXPECT_EQ(flops(Op::kAttention), 4 * (10 + 11 + 12) * q * layers);
  EXPECT_EQ(flops(Op::kNorm), 0);
  // 12 keys and values of 16 bits, once; 32 bits for each weight.
  EXPECT_EQ(timed.backend->totals(Op::kAttention).bytes, 12 * 2 * kv * 2 * layers);
  EXPECT_GE(timed.backend->totals(Op::kDown).bytes, 4.0 * c.ffn * c.hidden * layers);
}

TEST(TimedBackend, AFailedCallIsTimedAndItsErrorReturned) {
  const TickingClock clock;
  TimedBackend backend(Reference(), clock);
  auto x = *backend.Allocate(2, 8);
  auto weight = *backend.Allocate(1, 4);
  EXPECT_THAT(backend.RmsNorm(x->view(), weight->view(), 1e-5f, x->view()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(backend.totals(Op::kNorm).wall, kTick);
}

TEST(TimedBackend, EveryOperationHasANameOfItsOwn) {
  std::vector<std::string> names;
  for (int i = 0; i < kOps; ++i) {
    std::string name(OpName(static_cast<Op>(i)));
    EXPECT_EQ(std::count(names.begin(), names.end(), name), 0) << name;
    EXPECT_NE(name, "?");
    names.push_back(std::move(name));
  }
}

}  // namespace
}  // namespace loopserve::bench
