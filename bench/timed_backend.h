// TimedBackend: a backend that passes every call on to another and adds up what each kind of
// operation took and had to do. Objects (matrices, buffers, tables) are the other backend's own.
//
// A matrix product does not say which matrices of the model it has; the model's order of calls
// does: three weights are the projections to queries, keys and values, two are gate and up, and one
// is named by what came before it, attention or SiLU: else it is the output head.
//
// What an operation has to do at least is counted for matrix products (two operations for each
// weight and row; the weights as the backend holds them) and dense attention (four for each
// dimension of a query and key that it sees; the keys and values once). A plan that narrows
// attention is counted as dense.
//
// Thread rule: a Backend's; totals() and Reset() between steps. Wall time is that of the call, so
// the other backend must do its work in it, as the host's do.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include "absl/strings/string_view.h"

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "worker/backend/backend.h"

namespace loopserve::bench {

// In the order in which a layer has them.
enum class Op : uint8_t {
  kEmbed,
  kNorm,  // with the residual's sum
  kQkv,
  kRope,
  kAppendKv,
  kAttention,
  kAttentionOutput,
  kGateUp,
  kSilu,
  kDown,
  kHead,
  kOther,  // biases, sums, gathered rows, sampling, copies, waiting
};
inline constexpr int kOps = static_cast<int>(Op::kOther) + 1;
absl::string_view OpName(Op op);  // "attention_output"

struct OpTotals {
  int64_t calls = 0;
  absl::Duration wall;
  double bytes = 0;       // that have to be read
  double operations = 0;  // multiplications and additions
};

class TimedBackend final : public worker::Backend {
 public:
  using Matrix = worker::Matrix;
  using TensorView = worker::TensorView;

  TimedBackend(std::unique_ptr<worker::Backend> inner, const common::Clock& clock)
      : inner_(std::move(inner)), clock_(clock) {}

  const OpTotals& totals(Op op) const { return totals_[static_cast<size_t>(op)]; }
  const std::array<OpTotals, kOps>& totals() const { return totals_; }  // by Op
  absl::Duration total() const;                                         // of all operations
  void Reset() { totals_ = {}; }

  // Not timed.
  absl::string_view name() const override { return inner_->name(); }
  absl::string_view activation_format() const override { return inner_->activation_format(); }
  size_t MatrixBytes(worker::WeightType type, int64_t rows, int64_t cols,
                     worker::MatrixUse use) const override {
    return inner_->MatrixBytes(type, rows, cols, use);
  }
  kvstore::Memory& memory() override { return inner_->memory(); }
  size_t overhead_bytes() const override { return inner_->overhead_bytes(); }
  bool Supports(worker::WeightType type) const override { return inner_->Supports(type); }
  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(
      const worker::WeightView& weight, worker::RowRange rows,
      worker::MatrixUse use = worker::MatrixUse::kVocabulary) override {
    return inner_->LoadMatrix(weight, rows, use);
  }
  absl::StatusOr<std::unique_ptr<worker::Buffer>> Allocate(
      int64_t rows, int64_t cols, worker::BufferUse use = worker::BufferUse::kExact) override {
    return inner_->Allocate(rows, cols, use);
  }
  absl::StatusOr<std::unique_ptr<worker::RopeTable>> MakeRopeTable(
      const worker::RopeSpec& spec) override {
    return inner_->MakeRopeTable(spec);
  }

  absl::Status FinishLoading(int64_t max_rows) override { return inner_->FinishLoading(max_rows); }
  absl::Status RunStep(const worker::StepInputs& inputs,
                       absl::FunctionRef<absl::Status()> ops) override {
    return inner_->RunStep(inputs, ops);
  }
  absl::Status EmbedRows(const Matrix& table, common::TokenId first,
                         std::span<const common::TokenId> tokens, TensorView out) override;
  absl::Status RmsNorm(TensorView x, TensorView weight, float eps, TensorView out) override;
  absl::Status AddRmsNorm(TensorView residual, TensorView x, TensorView weight, float eps,
                          TensorView out) override;
  absl::Status MatMul(TensorView x, std::span<const Matrix* const> weights,
                      std::span<const TensorView> outs) override;
  absl::Status AddBias(TensorView x, TensorView bias) override;
  absl::Status Rope(TensorView x, int32_t heads, std::span<const int32_t> positions,
                    const worker::RopeTable& table) override;
  absl::Status AppendKv(int32_t layer, TensorView k, TensorView v,
                        std::span<const worker::AttentionSequence> sequences,
                        const kvstore::KvArena& kv) override;
  absl::Status Attention(const worker::AttentionArgs& args) override;
  absl::Status SiluMul(TensorView gate, TensorView up) override;
  absl::Status Add(TensorView residual, TensorView x) override;
  absl::Status GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) override;
  absl::Status Sample(TensorView logits, const worker::SamplingView& how,
                      std::span<worker::RowChoice> out) override;
  absl::Status CopyToHost(TensorView from, std::span<float> to) override;
  absl::Status CopyFromHost(std::span<const float> from, TensorView to) override;
  absl::Status Synchronize() override;

 private:
  absl::Status Timed(Op op, absl::FunctionRef<absl::Status()> call);
  Op ProductOf(size_t weights);

  const std::unique_ptr<worker::Backend> inner_;
  const common::Clock& clock_;
  std::array<OpTotals, kOps> totals_;
  Op single_ = Op::kHead;  // what a product with one weight would be
};

}  // namespace loopserve::bench
