#include "worker/backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/cpus.h"
#include "common/status_macros.h"
#include "kvstore/scaled_vector.h"
#include "worker/backend/cpu/attention/step_attention.h"
#include "worker/backend/cpu/cpu_isa.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/matmul.h"
#include "worker/backend/cpu/packed_matrix.h"
#include "worker/backend/cpu/work_crew.h"
#include "worker/backend/row_sampler.h"
#include "worker/backend/shape_check.h"

namespace loopserve::worker {
namespace cpu {
namespace {

using kvstore::KvArena;
using kvstore::KvDtype;
using kvstore::KvSide;

// Values of an elementwise op below which waking the crew costs more than it saves.
constexpr int64_t kSerialValues = 16384;

cpu_attention::AttentionIsa AttentionIsaOf(absl::string_view kernels) {
  if (absl::StrContains(kernels, "bf16")) {
    return cpu_attention::AttentionIsa::kAvx512Bf16;
  }
  if (absl::StartsWith(kernels, "avx512")) return cpu_attention::AttentionIsa::kAvx512;
  if (absl::StartsWith(kernels, "avx2")) return cpu_attention::AttentionIsa::kAvx2;
  return cpu_attention::AttentionIsa::kPortable;
}

class HostBuffer final : public Buffer {
 public:
  HostBuffer(std::unique_ptr<kvstore::MemoryRegion> region, int64_t rows, int64_t cols)
      : region_(std::move(region)), rows_(rows), cols_(cols) {}
  TensorView view() override {
    return {reinterpret_cast<float*>(region_->data()), rows_, cols_, cols_};
  }

 private:
  const std::unique_ptr<kvstore::MemoryRegion> region_;
  const int64_t rows_;
  const int64_t cols_;
};

class AngleTable final : public RopeTable {
 public:
  explicit AngleTable(const RopeSpec& spec)
      : pairs_(spec.inv_freq.size()),
        positions_(spec.max_positions),
        interleaved_(spec.interleaved),
        cos_(pairs_ * static_cast<size_t>(positions_)),
        sin_(cos_.size()) {
    size_t at = 0;
    for (int64_t p = 0; p < positions_; ++p) {
      for (size_t i = 0; i < pairs_; ++i, ++at) {
        const double angle = static_cast<double>(p) * spec.inv_freq[i];
        cos_[at] = static_cast<float>(std::cos(angle) * spec.scale);
        sin_[at] = static_cast<float>(std::sin(angle) * spec.scale);
      }
    }
  }
  int pairs() const { return static_cast<int>(pairs_); }
  int64_t positions() const { return positions_; }
  bool interleaved() const { return interleaved_; }
  const float* cos(int32_t p) const { return cos_.data() + pairs_ * static_cast<size_t>(p); }
  const float* sin(int32_t p) const { return sin_.data() + pairs_ * static_cast<size_t>(p); }

 private:
  const size_t pairs_;
  const int64_t positions_;
  const bool interleaved_;
  std::vector<float> cos_;
  std::vector<float> sin_;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Kernels& kernels, const BackendOptions& options)
      : kernels_(kernels),
        name_(absl::StrCat("cpu/", kernels.name)),
        crew_(options.threads, options.cpus, common::NumaNodesOf(options.cpus)),
        matmul_(kernels, crew_),
        attention_(AttentionIsaOf(kernels.name), crew_.threads()) {}

  absl::string_view name() const override { return name_; }
  absl::string_view activation_format() const override {
    return kernels_.activation_bits == 8 ? "8" : kSixteenBits;
  }
  kvstore::Memory& memory() override { return *memory_; }
  bool Supports(WeightType) const override { return true; }

  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const WeightView& weight, RowRange rows,
                                                     MatrixUse) override {
    return PackedMatrix::Pack(weight, rows, *memory_, crew_);
  }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t rows, int64_t cols, BufferUse) override {
    RETURN_IF_ERROR(Shape(rows >= 0 && cols >= 0, "Allocate"));
    ASSIGN_OR_RETURN(auto region,
                     memory_->Allocate(static_cast<size_t>(rows * cols) * sizeof(float)));
    return std::make_unique<HostBuffer>(std::move(region), rows, cols);
  }

  absl::StatusOr<std::unique_ptr<RopeTable>> MakeRopeTable(const RopeSpec& spec) override {
    RETURN_IF_ERROR(Shape(spec.max_positions >= 0, "MakeRopeTable"));
    return std::make_unique<AngleTable>(spec);
  }

  absl::Status EmbedRows(const Matrix& table, common::TokenId first,
                         std::span<const common::TokenId> tokens, TensorView out) override {
    const auto& matrix = static_cast<const PackedMatrix&>(table);
    RETURN_IF_ERROR(Shape(
        out.rows == static_cast<int64_t>(tokens.size()) && out.cols == matrix.cols(), "EmbedRows"));
    ForRows(out, [&](int64_t r) {
      const int64_t row = int64_t{tokens[static_cast<size_t>(r)]} - first;
      const std::span values(out.row(r), static_cast<size_t>(out.cols));
      if (row >= 0 && row < matrix.rows()) {
        matrix.DecodeRow(row, values);
      } else {
        std::fill(values.begin(), values.end(), 0.0F);
      }
    });
    return absl::OkStatus();
  }

  absl::Status RmsNorm(TensorView x, TensorView weight, float eps, TensorView out) override {
    RETURN_IF_ERROR(
        Shape(SameShape(x, out) && weight.rows == 1 && weight.cols == x.cols, "RmsNorm"));
    ForRows(x,
            [&](int64_t r) { kernels_.rms_norm(x.row(r), weight.data, x.cols, eps, out.row(r)); });
    return absl::OkStatus();
  }

  absl::Status AddRmsNorm(TensorView residual, TensorView x, TensorView weight, float eps,
                          TensorView out) override {
    RETURN_IF_ERROR(Shape(SameShape(residual, x) && SameShape(residual, out) && weight.rows == 1 &&
                              weight.cols == x.cols,
                          "AddRmsNorm"));
    ForRows(x, [&](int64_t r) {
      kernels_.add(residual.row(r), x.row(r), x.cols);
      kernels_.rms_norm(residual.row(r), weight.data, x.cols, eps, out.row(r));
    });
    return absl::OkStatus();
  }

  absl::Status MatMul(TensorView x, std::span<const Matrix* const> weights,
                      std::span<const TensorView> outs) override {
    RETURN_IF_ERROR(Shape(weights.size() == outs.size(), "MatMul"));
    for (size_t w = 0; w < weights.size(); ++w) {
      RETURN_IF_ERROR(Shape(weights[w]->cols() == x.cols && outs[w].rows == x.rows &&
                                outs[w].cols == weights[w]->rows(),
                            "MatMul"));
    }
    matmul_.Run(x, weights, outs);
    return absl::OkStatus();
  }

  absl::Status AddBias(TensorView x, TensorView bias) override {
    RETURN_IF_ERROR(Shape(bias.rows == 1 && bias.cols == x.cols, "AddBias"));
    ForRows(x, [&](int64_t r) { kernels_.add(x.row(r), bias.data, x.cols); });
    return absl::OkStatus();
  }

  absl::Status Rope(TensorView x, int32_t heads, std::span<const int32_t> positions,
                    const RopeTable& table) override {
    const auto& angles = static_cast<const AngleTable&>(table);
    RETURN_IF_ERROR(Shape(heads > 0 && x.cols % heads == 0 &&
                              2 * int64_t{angles.pairs()} <= x.cols / heads &&
                              x.rows == static_cast<int64_t>(positions.size()),
                          "Rope"));
    for (const int32_t position : positions) {
      RETURN_IF_ERROR(Shape(position >= 0 && position < angles.positions(), "Rope: position"));
    }
    ForRows(x, [&](int64_t r) {
      const int32_t position = positions[static_cast<size_t>(r)];
      kernels_.rope(x.row(r), heads, static_cast<int>(x.cols / heads), angles.cos(position),
                    angles.sin(position), angles.pairs(), angles.interleaved());
    });
    return absl::OkStatus();
  }

  absl::Status AppendKv(int32_t layer, TensorView k, TensorView v,
                        std::span<const AttentionSequence> sequences, const KvArena& kv) override {
    const kvstore::KvShape& shape = kv.shape;
    RETURN_IF_ERROR(Shape(layer >= 0 && layer < shape.layers && SameShape(k, v) &&
                              k.cols == int64_t{shape.kv_heads} * shape.head_dim,
                          "AppendKv"));
    for (const AttentionSequence& seq : sequences) {
      RETURN_IF_ERROR(CheckInArena(seq, k.rows, kv));
    }
    for (const AttentionSequence& seq : sequences) {
      ForRows(k.Rows(seq.first_row, seq.rows), [&](int64_t r) {
        const int64_t position = seq.kv_tokens - seq.rows + r;
        const common::BlockId block =
            seq.blocks[static_cast<size_t>(position / shape.block_tokens)];
        std::byte* base = kv.block(block);
        const auto slot = static_cast<size_t>(position % shape.block_tokens);
        for (int32_t h = 0; h < shape.kv_heads; ++h) {
          const int64_t col = int64_t{h} * shape.head_dim;
          StoreVector(k.row(seq.first_row + r) + col, shape, slot,
                      base + shape.offset(layer, KvSide::kKey, h));
          StoreVector(v.row(seq.first_row + r) + col, shape, slot,
                      base + shape.offset(layer, KvSide::kValue, h));
        }
      });
    }
    return absl::OkStatus();
  }

  absl::Status Attention(const AttentionArgs& args) override {
    const kvstore::KvShape& shape = args.kv->shape;
    RETURN_IF_ERROR(Shape(args.layer >= 0 && args.layer < shape.layers && args.q_heads > 0 &&
                              args.q_heads % shape.kv_heads == 0 &&
                              args.q.cols == int64_t{args.q_heads} * shape.head_dim &&
                              SameShape(args.out, args.q),
                          "Attention"));
    for (const AttentionSequence& seq : args.sequences) {
      RETURN_IF_ERROR(CheckInArena(seq, args.q.rows, *args.kv));
      RETURN_IF_ERROR(CheckPlan(seq, args.q_heads, shape.kv_heads));
    }
    RETURN_IF_ERROR(attention_.Prepare(args));
    crew_.For(crew_.threads(), 1, [this](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) attention_.Run(static_cast<int>(t));
    });
    return absl::OkStatus();
  }

  absl::Status SiluMul(TensorView gate, TensorView up) override {
    RETURN_IF_ERROR(Shape(SameShape(gate, up), "SiluMul"));
    ForRows(gate, [&](int64_t r) { kernels_.silu_mul(gate.row(r), up.row(r), gate.cols); });
    return absl::OkStatus();
  }

  absl::Status Add(TensorView residual, TensorView x) override {
    RETURN_IF_ERROR(Shape(SameShape(residual, x), "Add"));
    ForRows(x, [&](int64_t r) { kernels_.add(residual.row(r), x.row(r), x.cols); });
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
    for (int64_t r = 0; r < from.rows; ++r) {
      std::copy_n(from.row(r), from.cols, to.data() + r * from.cols);
    }
    return absl::OkStatus();
  }

  absl::Status CopyFromHost(std::span<const float> from, TensorView to) override {
    RETURN_IF_ERROR(Shape(static_cast<int64_t>(from.size()) == to.rows * to.cols, "CopyFromHost"));
    for (int64_t r = 0; r < to.rows; ++r) {
      std::copy_n(from.data() + r * to.cols, to.cols, to.row(r));
    }
    return absl::OkStatus();
  }

  absl::Status Synchronize() override { return absl::OkStatus(); }

 private:
  // row(r) for the rows of x, on the crew when there are many values.
  template <class Row>
  void ForRows(TensorView x, Row row) {
    const int64_t grain = std::max<int64_t>(1, kSerialValues / std::max<int64_t>(1, x.cols));
    crew_.For(x.rows, grain, [&row](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) row(r);
    });
  }

  void StoreVector(const float* from, const kvstore::KvShape& shape, size_t slot,
                   std::byte* head) const {
    std::byte* at = head + shape.vector_offset(slot);
    const auto dim = static_cast<size_t>(shape.head_dim);
    switch (shape.dtype) {
      case KvDtype::kBf16:
        return kernels_.to_bf16(from, shape.head_dim, reinterpret_cast<uint16_t*>(at));
      case KvDtype::kF32:
        std::copy_n(from, dim, reinterpret_cast<float*>(at));
        return;
      case KvDtype::kInt8:
      case KvDtype::kFp8: {
        const float scale = kvstore::EncodeVector(shape.dtype, from, dim, at);
        std::memcpy(head + shape.scale_offset(slot), &scale, sizeof scale);
      }
    }
  }

  static absl::Status CheckInArena(const AttentionSequence& seq, int64_t rows, const KvArena& kv) {
    RETURN_IF_ERROR(CheckSequence(seq, rows, kv.shape));
    for (const common::BlockId block : seq.blocks) {
      RETURN_IF_ERROR(Shape(block.value() < kv.num_blocks, "attention sequence: block"));
    }
    return absl::OkStatus();
  }

  static absl::Status CheckPlan(const AttentionSequence& seq, int32_t q_heads, int32_t kv_heads) {
    if (seq.lines != nullptr) {
      RETURN_IF_ERROR(Shape(
          seq.working_set == nullptr && static_cast<int32_t>(seq.lines->heads.size()) == q_heads,
          "line plan"));
      for (const LinePlan::Head& head : seq.lines->heads) {
        RETURN_IF_ERROR(Shape((head.verticals.empty() || head.verticals.front() >= 0) &&
                                  (head.slashes.empty() || head.slashes.front() >= 0),
                              "line plan"));
      }
    }
    if (seq.working_set != nullptr) {
      RETURN_IF_ERROR(Shape(static_cast<int32_t>(seq.working_set->keys.size()) == kv_heads &&
                                seq.working_set->dense_from >= 0,
                            "working set"));
      for (const std::vector<int32_t>& keys : seq.working_set->keys) {
        RETURN_IF_ERROR(Shape(keys.empty() || keys.front() >= 0, "working set"));
      }
    }
    return absl::OkStatus();
  }

  const Kernels& kernels_;
  const std::string name_;
  const std::unique_ptr<kvstore::Memory> memory_ = kvstore::CreateHostMemory();
  RowSampler sampler_;
  WorkCrew crew_;
  MatMulRunner matmul_;
  cpu_attention::StepAttention attention_;
};

}  // namespace
}  // namespace cpu

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const BackendOptions& options) {
  ASSIGN_OR_RETURN(const cpu::Kernels* kernels,
                   cpu::SelectKernels(options.isa, options.activation_bits));
  return std::make_unique<cpu::CpuBackend>(*kernels, options);
}

}  // namespace loopserve::worker
