#include "worker/backend/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvstore/scaled_vector.h"
#include "worker/backend/row_sampler.h"
#include "worker/backend/shape_check.h"

namespace loopserve::worker {
namespace {

using kvstore::KvArena;
using kvstore::KvDtype;
using kvstore::KvSide;

class FloatMatrix final : public Matrix {
 public:
  FloatMatrix(int64_t rows, int64_t cols, std::vector<float> values)
      : rows_(rows), cols_(cols), values_(std::move(values)) {}
  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  size_t resident_bytes() const override { return values_.size() * sizeof(float); }
  const float* row(int64_t r) const { return values_.data() + r * cols_; }

 private:
  const int64_t rows_;
  const int64_t cols_;
  const std::vector<float> values_;
};

class FloatBuffer final : public Buffer {
 public:
  FloatBuffer(int64_t rows, int64_t cols)
      : values_(static_cast<size_t>(rows * cols)), rows_(rows), cols_(cols) {}
  TensorView view() override { return {values_.data(), rows_, cols_, cols_}; }

 private:
  std::vector<float> values_;
  const int64_t rows_;
  const int64_t cols_;
};

class AngleTable final : public RopeTable {
 public:
  explicit AngleTable(RopeSpec spec) : spec_(std::move(spec)) {}
  const RopeSpec& spec() const { return spec_; }

 private:
  const RopeSpec spec_;
};

// One head's vectors in a block of the arena.
class HeadView {
 public:
  HeadView(const KvArena& kv, int32_t layer, KvSide side, int32_t head)
      : kv_(kv), offset_(kv.shape.offset(layer, side, head)) {}
  void Get(common::BlockId block, int64_t slot, float* values) const {
    const std::byte* vector = Vector(block, slot);
    const auto dim = static_cast<size_t>(kv_.shape.head_dim);
    switch (kv_.shape.dtype) {
      case KvDtype::kF32:
        std::memcpy(values, vector, dim * sizeof(float));
        return;
      case KvDtype::kBf16:
        for (size_t i = 0; i < dim; ++i) {
          uint16_t bits;
          std::memcpy(&bits, vector + i * sizeof bits, sizeof bits);
          values[i] = Bf16ToFloat(bits);
        }
        return;
      case KvDtype::kInt8:
      case KvDtype::kFp8: {
        float scale;
        std::memcpy(&scale, Scale(block, slot), sizeof scale);
        kvstore::DecodeVector(kv_.shape.dtype, vector, dim, scale, values);
      }
    }
  }
  void Set(common::BlockId block, int64_t slot, const float* values) const {
    std::byte* vector = Vector(block, slot);
    const auto dim = static_cast<size_t>(kv_.shape.head_dim);
    switch (kv_.shape.dtype) {
      case KvDtype::kF32:
        std::memcpy(vector, values, dim * sizeof(float));
        return;
      case KvDtype::kBf16:
        for (size_t i = 0; i < dim; ++i) {
          const uint16_t bits = FloatToBf16(values[i]);
          std::memcpy(vector + i * sizeof bits, &bits, sizeof bits);
        }
        return;
      case KvDtype::kInt8:
      case KvDtype::kFp8: {
        const float scale = kvstore::EncodeVector(kv_.shape.dtype, values, dim, vector);
        std::memcpy(Scale(block, slot), &scale, sizeof scale);
      }
    }
  }

 private:
  std::byte* Vector(common::BlockId block, int64_t slot) const {
    return kv_.block(block) + offset_ + kv_.shape.vector_offset(static_cast<size_t>(slot));
  }
  std::byte* Scale(common::BlockId block, int64_t slot) const {
    return kv_.block(block) + offset_ + kv_.shape.scale_offset(static_cast<size_t>(slot));
  }
  const KvArena& kv_;
  const size_t offset_;
};

// The keys that the row at `position` reads, ascending.
std::vector<int64_t> VisibleKeys(const AttentionSequence& seq, int32_t q_head, int32_t kv_head,
                                 int64_t position) {
  std::vector<int64_t> keys;
  if (seq.lines != nullptr) {
    const LinePlan::Head& head = seq.lines->heads[static_cast<size_t>(q_head)];
    for (const int32_t j : head.verticals) {
      if (j <= position) keys.push_back(j);
    }
    for (const int32_t d : head.slashes) {
      if (d <= position) keys.push_back(position - d);
    }
  } else if (seq.working_set != nullptr) {
    for (const int32_t j : seq.working_set->keys[static_cast<size_t>(kv_head)]) {
      if (j <= position) keys.push_back(j);
    }
    for (int64_t j = seq.working_set->dense_from; j <= position; ++j) keys.push_back(j);
  } else {
    for (int64_t j = 0; j <= position; ++j) keys.push_back(j);
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

class ReferenceBackend final : public Backend {
 public:
  absl::string_view name() const override { return "reference"; }
  kvstore::Memory& memory() override { return *memory_; }
  bool Supports(WeightType) const override { return true; }

  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const WeightView& weight, RowRange rows,
                                                     MatrixUse) override {
    RETURN_IF_ERROR(
        Shape(rows.begin >= 0 && rows.begin <= rows.end && rows.end <= weight.rows, "LoadMatrix"));
    std::vector<float> values(static_cast<size_t>(rows.size() * weight.cols));
    RETURN_IF_ERROR(DequantizeRows(weight, rows.begin, values));
    return std::make_unique<FloatMatrix>(rows.size(), weight.cols, std::move(values));
  }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t rows, int64_t cols, BufferUse) override {
    RETURN_IF_ERROR(Shape(rows >= 0 && cols >= 0, "Allocate"));
    return std::make_unique<FloatBuffer>(rows, cols);
  }

  absl::StatusOr<std::unique_ptr<RopeTable>> MakeRopeTable(const RopeSpec& spec) override {
    return std::make_unique<AngleTable>(spec);
  }

  absl::Status EmbedRows(const Matrix& table, common::TokenId first,
                         std::span<const common::TokenId> tokens, TensorView out) override {
    const auto& matrix = static_cast<const FloatMatrix&>(table);
    RETURN_IF_ERROR(Shape(
        out.rows == static_cast<int64_t>(tokens.size()) && out.cols == matrix.cols(), "EmbedRows"));
    for (int64_t t = 0; t < out.rows; ++t) {
      const int64_t row = int64_t{tokens[static_cast<size_t>(t)]} - first;
      if (row >= 0 && row < matrix.rows()) {
        std::copy_n(matrix.row(row), out.cols, out.row(t));
      } else {
        std::fill_n(out.row(t), out.cols, 0.0F);
      }
    }
    return absl::OkStatus();
  }

  absl::Status RmsNorm(TensorView x, TensorView weight, float eps, TensorView out) override {
    RETURN_IF_ERROR(
        Shape(x.rows == out.rows && x.cols == out.cols && weight.cols == x.cols, "RmsNorm"));
    for (int64_t t = 0; t < x.rows; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < x.cols; ++i) sum += double{x.row(t)[i]} * double{x.row(t)[i]};
      const double scale = 1 / std::sqrt(sum / static_cast<double>(x.cols) + double{eps});
      for (int64_t i = 0; i < x.cols; ++i) {
        out.row(t)[i] = static_cast<float>(x.row(t)[i] * scale * weight.row(0)[i]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddRmsNorm(TensorView residual, TensorView x, TensorView weight, float eps,
                          TensorView out) override {
    RETURN_IF_ERROR(Add(residual, x));
    return RmsNorm(residual, weight, eps, out);
  }

  absl::Status MatMul(TensorView x, std::span<const Matrix* const> weights,
                      std::span<const TensorView> outs) override {
    RETURN_IF_ERROR(Shape(weights.size() == outs.size(), "MatMul"));
    for (size_t w = 0; w < weights.size(); ++w) {
      const auto& matrix = static_cast<const FloatMatrix&>(*weights[w]);
      const TensorView& out = outs[w];
      RETURN_IF_ERROR(Shape(
          matrix.cols() == x.cols && out.rows == x.rows && out.cols == matrix.rows(), "MatMul"));
      for (int64_t t = 0; t < x.rows; ++t) {
        for (int64_t n = 0; n < matrix.rows(); ++n) {
          out.row(t)[n] = static_cast<float>(Dot(x.row(t), matrix.row(n), x.cols));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddBias(TensorView x, TensorView bias) override {
    RETURN_IF_ERROR(Shape(bias.cols == x.cols, "AddBias"));
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t i = 0; i < x.cols; ++i) x.row(t)[i] += bias.row(0)[i];
    }
    return absl::OkStatus();
  }

  absl::Status Rope(TensorView x, int32_t heads, std::span<const int32_t> positions,
                    const RopeTable& table) override {
    const RopeSpec& spec = static_cast<const AngleTable&>(table).spec();
    const auto pairs = static_cast<int64_t>(spec.inv_freq.size());
    RETURN_IF_ERROR(Shape(heads > 0 && x.cols % heads == 0 && 2 * pairs <= x.cols / heads &&
                              x.rows == static_cast<int64_t>(positions.size()),
                          "Rope"));
    const int64_t head_dim = x.cols / heads;
    for (int64_t t = 0; t < x.rows; ++t) {
      const int32_t position = positions[static_cast<size_t>(t)];
      RETURN_IF_ERROR(Shape(position >= 0 && position < spec.max_positions, "Rope"));
      for (int32_t h = 0; h < heads; ++h) RotateHead(x.row(t) + h * head_dim, position, spec);
    }
    return absl::OkStatus();
  }

  absl::Status AppendKv(int32_t layer, TensorView k, TensorView v,
                        std::span<const AttentionSequence> sequences, const KvArena& kv) override {
    const kvstore::KvShape& shape = kv.shape;
    RETURN_IF_ERROR(
        Shape(k.cols == shape.kv_heads * shape.head_dim && v.cols == k.cols, "AppendKv"));
    for (const AttentionSequence& seq : sequences) {
      RETURN_IF_ERROR(CheckSequence(seq, k.rows, shape));
      for (int64_t r = 0; r < seq.rows; ++r) {
        const int64_t position = seq.kv_tokens - seq.rows + r;
        const common::BlockId block =
            seq.blocks[static_cast<size_t>(position / shape.block_tokens)];
        const int64_t slot = position % shape.block_tokens;
        for (int32_t h = 0; h < shape.kv_heads; ++h) {
          const HeadView keys(kv, layer, KvSide::kKey, h);
          const HeadView values(kv, layer, KvSide::kValue, h);
          keys.Set(block, slot, k.row(seq.first_row + r) + h * shape.head_dim);
          values.Set(block, slot, v.row(seq.first_row + r) + h * shape.head_dim);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Attention(const AttentionArgs& args) override {
    const kvstore::KvShape& shape = args.kv->shape;
    RETURN_IF_ERROR(Shape(args.q_heads % shape.kv_heads == 0 &&
                              args.q.cols == args.q_heads * shape.head_dim &&
                              args.out.cols == args.q.cols && args.out.rows == args.q.rows,
                          "Attention"));
    for (const AttentionSequence& seq : args.sequences) {
      RETURN_IF_ERROR(CheckSequence(seq, args.q.rows, shape));
      for (int64_t r = 0; r < seq.rows; ++r) {
        for (int32_t h = 0; h < args.q_heads; ++h) AttendRow(args, seq, r, h);
      }
    }
    return absl::OkStatus();
  }

  absl::Status SiluMul(TensorView gate, TensorView up) override {
    RETURN_IF_ERROR(Shape(gate.rows == up.rows && gate.cols == up.cols, "SiluMul"));
    for (int64_t t = 0; t < gate.rows; ++t) {
      for (int64_t i = 0; i < gate.cols; ++i) {
        const double g = gate.row(t)[i];
        gate.row(t)[i] = static_cast<float>(g / (1 + std::exp(-g)) * up.row(t)[i]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Add(TensorView residual, TensorView x) override {
    RETURN_IF_ERROR(Shape(residual.rows == x.rows && residual.cols == x.cols, "Add"));
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t i = 0; i < x.cols; ++i) residual.row(t)[i] += x.row(t)[i];
    }
    return absl::OkStatus();
  }

  absl::Status GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) override {
    RETURN_IF_ERROR(
        Shape(out.rows == static_cast<int64_t>(rows.size()) && out.cols == x.cols, "GatherRows"));
    for (int64_t i = 0; i < out.rows; ++i) {
      const int32_t row = rows[static_cast<size_t>(i)];
      RETURN_IF_ERROR(Shape(row >= 0 && row < x.rows, "GatherRows"));
      std::copy_n(x.row(row), x.cols, out.row(i));
    }
    return absl::OkStatus();
  }

  absl::Status Sample(TensorView logits, const SamplingView& how,
                      std::span<RowChoice> out) override {
    return sampler_.Sample(logits, how, out);
  }

  absl::Status CopyToHost(TensorView from, std::span<float> to) override {
    RETURN_IF_ERROR(Shape(static_cast<int64_t>(to.size()) == from.rows * from.cols, "CopyToHost"));
    for (int64_t t = 0; t < from.rows; ++t) {
      std::copy_n(from.row(t), from.cols, to.data() + t * from.cols);
    }
    return absl::OkStatus();
  }

  absl::Status CopyFromHost(std::span<const float> from, TensorView to) override {
    RETURN_IF_ERROR(Shape(static_cast<int64_t>(from.size()) == to.rows * to.cols, "CopyFromHost"));
    for (int64_t t = 0; t < to.rows; ++t) {
      std::copy_n(from.data() + t * to.cols, to.cols, to.row(t));
    }
    return absl::OkStatus();
  }

  absl::Status Synchronize() override { return absl::OkStatus(); }

 private:
  static double Dot(const float* a, const float* b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += double{a[i]} * double{b[i]};
    return sum;
  }

  static void RotateHead(float* x, int32_t position, const RopeSpec& spec) {
    const size_t pairs = spec.inv_freq.size();
    for (size_t i = 0; i < pairs; ++i) {
      const size_t a = spec.interleaved ? 2 * i : i;
      const size_t b = spec.interleaved ? 2 * i + 1 : i + pairs;
      const double angle = position * spec.inv_freq[i];
      const double c = std::cos(angle) * spec.scale;
      const double s = std::sin(angle) * spec.scale;
      const double xa = x[a];
      const double xb = x[b];
      x[a] = static_cast<float>(xa * c - xb * s);
      x[b] = static_cast<float>(xa * s + xb * c);
    }
  }

  static void AttendRow(const AttentionArgs& args, const AttentionSequence& seq, int64_t row,
                        int32_t q_head) {
    const kvstore::KvShape& shape = args.kv->shape;
    const int32_t kv_head = q_head / (args.q_heads / shape.kv_heads);
    const int64_t position = seq.kv_tokens - seq.rows + row;
    const float* q = args.q.row(seq.first_row + row) + q_head * shape.head_dim;
    float* out = args.out.row(seq.first_row + row) + q_head * shape.head_dim;
    const HeadView keys(*args.kv, args.layer, KvSide::kKey, kv_head);
    const HeadView values(*args.kv, args.layer, KvSide::kValue, kv_head);
    const std::vector<int64_t> visible = VisibleKeys(seq, q_head, kv_head, position);

    const auto dim = static_cast<size_t>(shape.head_dim);
    const auto block_of = [&](int64_t key) {
      return seq.blocks[static_cast<size_t>(key / shape.block_tokens)];
    };

    std::vector<float> vector(dim);
    std::vector<double> weights;
    double highest = -INFINITY;
    for (const int64_t j : visible) {
      keys.Get(block_of(j), j % shape.block_tokens, vector.data());
      double score = 0;
      for (size_t i = 0; i < dim; ++i) score += double{q[i]} * double{vector[i]};
      weights.push_back(score * double{args.scale});
      highest = std::max(highest, weights.back());
    }
    double total = 0;
    for (double& w : weights) total += w = std::exp(w - highest);
    std::vector<double> sums(dim, 0);
    for (size_t n = 0; n < visible.size(); ++n) {
      values.Get(block_of(visible[n]), visible[n] % shape.block_tokens, vector.data());
      for (size_t i = 0; i < dim; ++i) sums[i] += weights[n] * double{vector[i]};
    }
    for (size_t i = 0; i < dim; ++i) {
      out[i] = visible.empty() ? 0 : static_cast<float>(sums[i] / total);
    }
  }

  const std::unique_ptr<kvstore::Memory> memory_ = kvstore::CreateHostMemory();
  RowSampler sampler_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateReferenceBackend(const BackendOptions&) {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace loopserve::worker
