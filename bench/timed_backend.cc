#include "bench/timed_backend.h"

namespace loopserve::bench {

using worker::AttentionArgs;
using worker::AttentionSequence;

absl::string_view OpName(Op op) {
  switch (op) {
    case Op::kEmbed:
      return "embed";
    case Op::kNorm:
      return "norm";
    case Op::kQkv:
      return "qkv";
    case Op::kRope:
      return "rope";
    case Op::kAppendKv:
      return "append_kv";
    case Op::kAttention:
      return "attention";
    case Op::kAttentionOutput:
      return "attention_output";
    case Op::kGateUp:
      return "gate_up";
    case Op::kSilu:
      return "silu";
    case Op::kDown:
      return "down";
    case Op::kHead:
      return "head";
    case Op::kOther:
      return "other";
  }
  return "?";
}

absl::Duration TimedBackend::total() const {
  absl::Duration sum;
  for (const OpTotals& totals : totals_) sum += totals.wall;
  return sum;
}

absl::Status TimedBackend::Timed(Op op, absl::FunctionRef<absl::Status()> call) {
  const absl::Time start = clock_.Now();
  absl::Status status = call();
  OpTotals& totals = totals_[static_cast<size_t>(op)];
  totals.wall += clock_.Now() - start;
  ++totals.calls;
  return status;
}

Op TimedBackend::ProductOf(size_t weights) {
  if (weights == 3) return Op::kQkv;
  if (weights == 2) return Op::kGateUp;
  return weights == 1 ? std::exchange(single_, Op::kHead) : Op::kOther;
}

absl::Status TimedBackend::MatMul(TensorView x, std::span<const Matrix* const> weights,
                                  std::span<const TensorView> outs) {
  const Op op = ProductOf(weights.size());
  OpTotals& totals = totals_[static_cast<size_t>(op)];
  for (const Matrix* weight : weights) {
    totals.bytes += static_cast<double>(weight->resident_bytes());
    totals.operations += 2.0 * static_cast<double>(x.rows * weight->rows() * weight->cols());
  }
  return Timed(op, [&] { return inner_->MatMul(x, weights, outs); });
}

absl::Status TimedBackend::Attention(const AttentionArgs& args) {
  OpTotals& totals = totals_[static_cast<size_t>(Op::kAttention)];
  const kvstore::KvShape& shape = args.kv->shape;
  const auto token_bytes =
      static_cast<double>(shape.token_bytes()) / static_cast<double>(shape.layers);
  for (const AttentionSequence& s : args.sequences) {
    const int64_t pairs = s.rows * (s.kv_tokens - s.rows) + s.rows * (s.rows + 1) / 2;
    totals.bytes += token_bytes * static_cast<double>(s.kv_tokens);
    totals.operations += 4.0 * static_cast<double>(pairs * args.q_heads * shape.head_dim);
  }
  single_ = Op::kAttentionOutput;
  return Timed(Op::kAttention, [&] { return inner_->Attention(args); });
}

absl::Status TimedBackend::SiluMul(TensorView gate, TensorView up) {
  single_ = Op::kDown;
  return Timed(Op::kSilu, [&] { return inner_->SiluMul(gate, up); });
}

absl::Status TimedBackend::EmbedRows(const Matrix& table, common::TokenId first,
                                     std::span<const common::TokenId> tokens, TensorView out) {
  return Timed(Op::kEmbed, [&] { return inner_->EmbedRows(table, first, tokens, out); });
}

absl::Status TimedBackend::RmsNorm(TensorView x, TensorView weight, float eps, TensorView out) {
  return Timed(Op::kNorm, [&] { return inner_->RmsNorm(x, weight, eps, out); });
}

absl::Status TimedBackend::AddRmsNorm(TensorView residual, TensorView x, TensorView weight,
                                      float eps, TensorView out) {
  return Timed(Op::kNorm, [&] { return inner_->AddRmsNorm(residual, x, weight, eps, out); });
}

absl::Status TimedBackend::AddBias(TensorView x, TensorView bias) {
  return Timed(Op::kOther, [&] { return inner_->AddBias(x, bias); });
}

absl::Status TimedBackend::Rope(TensorView x, int32_t heads, std::span<const int32_t> positions,
                                const worker::RopeTable& table) {
  return Timed(Op::kRope, [&] { return inner_->Rope(x, heads, positions, table); });
}

absl::Status TimedBackend::AppendKv(int32_t layer, TensorView k, TensorView v,
                                    std::span<const AttentionSequence> sequences,
                                    const kvstore::KvArena& kv) {
  return Timed(Op::kAppendKv, [&] { return inner_->AppendKv(layer, k, v, sequences, kv); });
}

absl::Status TimedBackend::Add(TensorView residual, TensorView x) {
  return Timed(Op::kOther, [&] { return inner_->Add(residual, x); });
}

absl::Status TimedBackend::GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) {
  return Timed(Op::kOther, [&] { return inner_->GatherRows(x, rows, out); });
}

absl::Status TimedBackend::Sample(TensorView logits, const worker::SamplingView& how,
                                  std::span<worker::RowChoice> out) {
  return Timed(Op::kOther, [&] { return inner_->Sample(logits, how, out); });
}

absl::Status TimedBackend::CopyToHost(TensorView from, std::span<float> to) {
  return Timed(Op::kOther, [&] { return inner_->CopyToHost(from, to); });
}

absl::Status TimedBackend::CopyFromHost(std::span<const float> from, TensorView to) {
  return Timed(Op::kOther, [&] { return inner_->CopyFromHost(from, to); });
}

absl::Status TimedBackend::Synchronize() {
  return Timed(Op::kOther, [&] { return inner_->Synchronize(); });
}

}  // namespace loopserve::bench
