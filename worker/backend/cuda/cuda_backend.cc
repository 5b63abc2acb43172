#include "worker/backend/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "common/cpus.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/attention_runner.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/cuda_memory.h"
#include "worker/backend/cuda/device.h"
#include "worker/backend/cuda/device_step.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/int8_block_coder.h"
#include "worker/backend/cuda/kernels/append_kv.h"
#include "worker/backend/cuda/kernels/copy_words.h"
#include "worker/backend/cuda/kernels/elementwise.h"
#include "worker/backend/cuda/kernels/fp8_layout.h"
#include "worker/backend/cuda/kernels/fp8_rows.h"
#include "worker/backend/cuda/kernels/norm.h"
#include "worker/backend/cuda/kernels/rope.h"
#include "worker/backend/cuda/kernels/sample_rows.h"
#include "worker/backend/cuda/matmul/cublas_lt.h"
#include "worker/backend/cuda/matmul/kernels/embed_rows.h"
#include "worker/backend/cuda/matmul/matmul.h"
#include "worker/backend/cuda/matmul/packed_layout.h"
#include "worker/backend/cuda/matmul/packed_weight.h"
#include "worker/backend/cuda/nccl_communicator.h"
#include "worker/backend/cuda/nccl_library.h"
#include "worker/backend/cuda/step_graphs.h"
#include "worker/backend/row_sampler.h"
#include "worker/backend/shape_check.h"

namespace loopserve::worker {
namespace cuda {
namespace {

// Of products at once; more are computed in parts.
constexpr int64_t kMatMulRows = 2048;
// Workspaces of products (at most 32 MiB of cuBLASLt's, 256 MiB of decoded weights and activations;
// while E4M3 weights are made, one matrix in bf16) and of attention, recorded steps, code, the
// buffers of NCCL, and those in which KV is coded on its way to the host and back.
constexpr size_t kOverheadBytes = (size_t{1} << 30) + Int8BlockCoder::kDeviceBytes;

class DeviceBuffer final : public Buffer {
 public:
  DeviceBuffer(DeviceRegion region, int64_t rows, int64_t cols, ActivationType type)
      : region_(std::move(region)), rows_(rows), cols_(cols), type_(type) {}
  TensorView view() override {
    return {reinterpret_cast<float*>(region_.data()), rows_, cols_, cols_, type_};
  }

 private:
  DeviceRegion region_;
  const int64_t rows_, cols_;
  const ActivationType type_;
};

class DeviceMatrix final : public Matrix {
 public:
  DeviceMatrix(DeviceRegion region, DeviceWeight weight)
      : region_(std::move(region)), weight_(weight) {}
  int64_t rows() const override { return weight_.rows; }
  int64_t cols() const override { return weight_.cols; }
  size_t resident_bytes() const override { return region_.size(); }
  const DeviceWeight& weight() const { return weight_; }

 private:
  const DeviceRegion region_;
  const DeviceWeight weight_;
};

class DeviceAngles final : public RopeTable {
 public:
  DeviceAngles(DeviceRegion region, RopeAngles angles, int64_t max_positions)
      : region_(std::move(region)), angles_(angles), max_positions_(max_positions) {}
  const RopeAngles& angles() const { return angles_; }
  int64_t max_positions() const { return max_positions_; }

 private:
  const DeviceRegion region_;
  const RopeAngles angles_;
  const int64_t max_positions_;
};

// [positions, pairs, 2]
std::vector<float> AnglesOf(const RopeSpec& spec) {
  const size_t pairs = spec.inv_freq.size();
  std::vector<float> values(static_cast<size_t>(spec.max_positions) * pairs * 2);
  size_t at = 0;
  for (int64_t position = 0; position < spec.max_positions; ++position) {
    for (const double inv_freq : spec.inv_freq) {
      const double angle = static_cast<double>(position) * inv_freq;
      values[at++] = static_cast<float>(std::cos(angle) * spec.scale);
      values[at++] = static_cast<float>(std::sin(angle) * spec.scale);
    }
  }
  return values;
}

class CudaBackend final : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const BackendOptions& options);

  absl::string_view name() const override { return limits_.fp8 ? fp8_name_ : name_; }
  absl::string_view activation_format() const override {
    return limits_.fp8 ? "e4m3" : kSixteenBits;
  }
  kvstore::Memory& memory() override { return *memory_; }
  bool Supports(WeightType) const override { return true; }
  size_t overhead_bytes() const override { return kOverheadBytes; }
  bool warms_up() const override { return true; }

  absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectRanks(
      std::span<Backend* const> group, absl::Duration timeout,
      const std::shared_ptr<RankExchange>& exchange) override;
  absl::Status CanJoinRanks() const override { return LoadNccl().status(); }
  bool prefers_input_sharding() const override { return true; }

  size_t MatrixBytes(WeightType type, int64_t rows, int64_t cols, MatrixUse use) const override {
    return IsFp8(type, rows, use) ? Fp8Bytes(rows, cols) : PackedBytes(type, rows, cols);
  }
  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const WeightView& weight, RowRange rows,
                                                     MatrixUse use) override;
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t rows, int64_t cols,
                                                   BufferUse use) override;
  absl::StatusOr<std::unique_ptr<RopeTable>> MakeRopeTable(const RopeSpec& spec) override;

  absl::Status FinishLoading(int64_t max_rows) override;
  absl::Status RunStep(const StepInputs& inputs, absl::FunctionRef<absl::Status()> ops) override;
  absl::Status EmbedRows(const Matrix& table, common::TokenId first,
                         std::span<const common::TokenId> tokens, TensorView out) override;
  absl::Status RmsNorm(TensorView x, TensorView weight, float eps, TensorView out) override;
  absl::Status AddRmsNorm(TensorView residual, TensorView x, TensorView weight, float eps,
                          TensorView out) override;
  absl::Status MatMul(TensorView x, std::span<const Matrix* const> weights,
                      std::span<const TensorView> outs) override;
  absl::Status AddBias(TensorView x, TensorView bias) override;
  absl::Status Rope(TensorView x, int32_t heads, std::span<const int32_t> positions,
                    const RopeTable& table) override;
  absl::Status AppendKv(int32_t layer, TensorView k, TensorView v,
                        std::span<const AttentionSequence> sequences,
                        const kvstore::KvArena& kv) override;
  absl::Status Attention(const AttentionArgs& args) override;
  absl::Status SiluMul(TensorView gate, TensorView up) override;
  absl::Status Add(TensorView residual, TensorView x) override;
  absl::Status GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) override;
  absl::Status Sample(TensorView logits, const SamplingView& how,
                      std::span<RowChoice> out) override;
  absl::Status CopyToHost(TensorView from, std::span<float> to) override;
  absl::Status CopyFromHost(std::span<const float> from, TensorView to) override;
  absl::Status Synchronize() override;

 private:
  CudaBackend(Device device, const BackendOptions& options)
      : device_(std::move(device)),
        fp8_(options.activation_bits == 8 && device_.has_fp8()),
        packers_(options.threads > 0 ? options.threads
                                     : static_cast<int>(common::ReadCpus().allowed.size())),
        name_(absl::StrCat("cuda/", device_.name())),
        fp8_name_(absl::StrCat(name_, ", fp8")),
        step_attention_(device_),
        call_attention_(device_) {}

  // The calling thread's device is this one from here on. Codes that an op before has left for a
  // product may be of values that this one changes.
  absl::Status Enter() {
    if (matmul_ != nullptr) matmul_->ForgetCodes();
    return device_.MakeCurrent();
  }
  // Where an op that writes x leaves codes for the product behind it.
  Fp8Rows CodesFor(const TensorView& x) {
    return matmul_ != nullptr ? matmul_->CodesFor(x) : Fp8Rows{};
  }
  cudaStream_t stream() const { return stream_.get(); }
  // The tables for these sequences: the step's own, or ones sent for this call alone.
  absl::StatusOr<DeviceStep*> TablesFor(std::span<const AttentionSequence> sequences, int64_t rows,
                                        const kvstore::KvArena& kv, int32_t q_heads,
                                        ActivationType activations);
  // `values` on the device: the step's copy of them if there is one, else sent now.
  absl::StatusOr<const int32_t*> OnDevice(std::span<const int32_t> values);
  absl::Status MakeMatMul();
  absl::StatusOr<DeviceRegion> OnDeviceForGood(std::span<const std::byte> bytes);
  // Whether such matrices are held as E4M3: none of which the library would refuse the products.
  bool IsFp8(WeightType type, int64_t rows, MatrixUse use) const {
    return fp8_ && use == MatrixUse::kLinear && DeviceTypeOf(type) == WeightType::kBF16 &&
           rows % CublasLt::kE4m3Outputs == 0;
  }
  // The matrix as E4M3 instead of bf16.
  absl::StatusOr<std::unique_ptr<DeviceMatrix>> ToFp8(const DeviceWeight& bf16);
  // Makes the workspaces of products anew if they need more than for the matrices so far.
  void Provide(const DeviceWeight& weight);
  absl::Status Plan(const StepInputs& inputs, ActivationType activations, DeviceStep& tables,
                    AttentionRunner& attention);
  // The contiguous f32 scratch of the copies between host and bf16 buffers.
  absl::StatusOr<TensorView> CopyScratch(int64_t rows, int64_t cols);

  const Device device_;
  const bool fp8_;     // whether layers are to have products of E4M3
  const int packers_;  // threads that pack weights while a model is loaded
  const std::string name_, fp8_name_;
  std::unique_ptr<kvstore::Memory> memory_;
  Stream stream_;
  std::optional<CublasLt> lt_;
  MatMulLimits limits_{.rows = kMatMulRows};  // of the matrices loaded so far
  DeviceRegion workspace_;
  std::unique_ptr<MatMulRunner> matmul_;  // made for them at the first product
  DeviceRegion copy_scratch_;
  DeviceRegion index_scratch_;

  // The step at hand (inputs_ set), and what a single call outside of one needs.
  const StepInputs* inputs_ = nullptr;
  DeviceStep step_, call_;
  AttentionRunner step_attention_, call_attention_;
  uint64_t generations_ = 0;  // of everything that recordings point to
  StepGraphs graphs_;
};

absl::StatusOr<std::unique_ptr<Backend>> CudaBackend::Create(const BackendOptions& options) {
  const int index = options.device;
  ASSIGN_OR_RETURN(Device device, Device::Open(index));
  RETURN_IF_ERROR(device.MakeCurrent());
  std::unique_ptr<CudaBackend> backend(new CudaBackend(std::move(device), options));
  ASSIGN_OR_RETURN(backend->stream_, Stream::Create());
  ASSIGN_OR_RETURN(backend->memory_, CreateCudaMemory(index));
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  if (!lt.ok()) return absl::FailedPreconditionError(lt.status().message());
  backend->lt_ = *std::move(lt);
  return backend;
}

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> CudaBackend::ConnectRanks(
    std::span<Backend* const> group, absl::Duration timeout,
    const std::shared_ptr<RankExchange>& exchange) {
  if (group.size() == 1 && exchange == nullptr) return CreateThreadCommunicators(1, timeout);
  std::vector<NcclRank> ranks;
  for (Backend* const member : group) {
    auto& backend = static_cast<CudaBackend&>(*member);
    backend.graphs_.Clear();  // they hold on to the communicators there were before
    ranks.push_back({.device = backend.device_.index(),
                     .stream = backend.stream(),
                     .recordings = &backend.graphs_});
  }
  return ConnectNcclRanks(ranks, timeout, exchange);
}

// --- Weights and buffers

// Through our stream, and waited for: a plain copy may return before its last bytes have arrived,
// and our stream does not wait for the one it runs on.
absl::StatusOr<DeviceRegion> CudaBackend::OnDeviceForGood(std::span<const std::byte> bytes) {
  ASSIGN_OR_RETURN(DeviceRegion region, DeviceRegion::Create(bytes.size()));
  CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(region.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream()));
  RETURN_IF_ERROR(stream_.Synchronize());
  return region;
}

absl::StatusOr<std::unique_ptr<DeviceMatrix>> CudaBackend::ToFp8(const DeviceWeight& bf16) {
  ASSIGN_OR_RETURN(DeviceRegion region, DeviceRegion::Create(Fp8Bytes(bf16.rows, bf16.cols)));
  auto* const scales = reinterpret_cast<float*>(region.data() + Fp8ScalesAt(bf16.rows, bf16.cols));
  const TensorView values{reinterpret_cast<float*>(const_cast<std::byte*>(bf16.data)), bf16.rows,
                          bf16.cols, Bf16Pitch(bf16.cols), ActivationType::kBf16};
  CUDA_RETURN_IF_ERROR(LaunchToE4m3(values, {region.data(), scales}, stream()));
  RETURN_IF_ERROR(stream_.Synchronize());
  DeviceWeight weight = bf16;
  weight.data = region.data();
  weight.scales = scales;
  return std::make_unique<DeviceMatrix>(std::move(region), weight);
}

void CudaBackend::Provide(const DeviceWeight& weight) {
  MatMulLimits limits = limits_;
  limits.cols = std::max(limits.cols, weight.cols);
  limits.fp8 |= weight.fp8();
  if (weight.type != WeightType::kBF16) {
    limits.quantised_rows = std::max(limits.quantised_rows, weight.rows);
  }
  if (limits == limits_) return;
  limits_ = limits;
  matmul_.reset();  // to be made anew; whoever loads has waited for what it has put on the stream
  graphs_.Clear();  // they use its workspace
}

absl::StatusOr<std::unique_ptr<Matrix>> CudaBackend::LoadMatrix(const WeightView& weight,
                                                                RowRange rows, MatrixUse use) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(
      Shape(rows.begin >= 0 && rows.begin <= rows.end && rows.end <= weight.rows, "LoadMatrix"));
  // Left as it is: the threads that pack it write all of it, and share its page faults.
  const size_t bytes = PackedBytes(weight.type, rows.size(), weight.cols);
  const auto memory = std::make_unique_for_overwrite<std::byte[]>(bytes);
  const std::span packed(memory.get(), bytes);
  RETURN_IF_ERROR(PackForDevice(weight, rows, packers_, packed));
  ASSIGN_OR_RETURN(DeviceRegion region, OnDeviceForGood(packed));
  const DeviceWeight on_device{.type = DeviceTypeOf(weight.type),
                               .data = region.data(),
                               .rows = rows.size(),
                               .cols = weight.cols};
  auto matrix = std::make_unique<DeviceMatrix>(std::move(region), on_device);
  if (IsFp8(weight.type, rows.size(), use)) {
    ASSIGN_OR_RETURN(matrix, ToFp8(on_device));
  }
  Provide(matrix->weight());
  return matrix;
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaBackend::Allocate(int64_t rows, int64_t cols,
                                                              BufferUse use) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(rows >= 0 && cols >= 0, "Allocate"));
  const ActivationType type =
      use == BufferUse::kExact ? ActivationType::kF32 : ActivationType::kBf16;
  ASSIGN_OR_RETURN(DeviceRegion region,
                   DeviceRegion::Create(static_cast<size_t>(rows * cols) * BytesOf(type)));
  return std::make_unique<DeviceBuffer>(std::move(region), rows, cols, type);
}

absl::StatusOr<std::unique_ptr<RopeTable>> CudaBackend::MakeRopeTable(const RopeSpec& spec) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(spec.max_positions >= 0, "MakeRopeTable"));
  const std::vector<float> values = AnglesOf(spec);
  ASSIGN_OR_RETURN(DeviceRegion region, OnDeviceForGood(std::as_bytes(std::span(values))));
  const RopeAngles angles{.values = reinterpret_cast<const float*>(region.data()),
                          .pairs = static_cast<int32_t>(spec.inv_freq.size()),
                          .interleaved = spec.interleaved};
  return std::make_unique<DeviceAngles>(std::move(region), angles, spec.max_positions);
}

absl::Status CudaBackend::FinishLoading(int64_t max_rows) {
  RETURN_IF_ERROR(Enter());
  limits_.rows = std::clamp<int64_t>(max_rows, 1, kMatMulRows);
  graphs_.Clear();
  return MakeMatMul();
}

// --- Steps

absl::Status CudaBackend::Plan(const StepInputs& inputs, ActivationType activations,
                               DeviceStep& tables, AttentionRunner& attention) {
  RETURN_IF_ERROR(attention.Plan(inputs.sequences, inputs.q_heads, inputs.kv->shape, activations));
  return tables.Upload(inputs, attention.words(), stream_);
}

absl::Status CudaBackend::RunStep(const StepInputs& inputs, absl::FunctionRef<absl::Status()> ops) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Plan(inputs, ActivationType::kBf16, step_, step_attention_));
  inputs_ = &inputs;
  const absl::Cleanup leave = [this] { inputs_ = nullptr; };
  if (const uint64_t now = step_.generation() + step_attention_.generation(); now != generations_) {
    generations_ = now;
    graphs_.Clear();
  }
  bool is_decode = !inputs.sequences.empty();
  for (const AttentionSequence& sequence : inputs.sequences) is_decode &= sequence.rows == 1;
  if (!is_decode) return ops();
  StepShape shape = step_attention_.ShapeWords();
  shape.insert(shape.end(),
               {inputs.tokens.size(), inputs.logit_rows.size(), inputs.sampling.rows.size(),
                reinterpret_cast<uintptr_t>(inputs.kv->base)});
  return graphs_.Run(shape, stream_, inputs.ranks, ops);
}

absl::StatusOr<DeviceStep*> CudaBackend::TablesFor(std::span<const AttentionSequence> sequences,
                                                   int64_t rows, const kvstore::KvArena& kv,
                                                   int32_t q_heads, ActivationType activations) {
  const bool is_step = inputs_ != nullptr && inputs_->sequences.data() == sequences.data() &&
                       inputs_->tokens.size() == static_cast<size_t>(rows) &&
                       step_attention_.activations() == activations;
  if (is_step) return &step_;
  if (graphs_.recording()) {
    return absl::FailedPreconditionError("a recorded step used sequences that are not its own");
  }
  const std::vector<int32_t> unused(static_cast<size_t>(rows));
  const StepInputs inputs{
      .tokens = unused, .positions = unused, .sequences = sequences, .kv = &kv, .q_heads = q_heads};
  RETURN_IF_ERROR(Plan(inputs, activations, call_, call_attention_));
  return &call_;
}

absl::StatusOr<const int32_t*> CudaBackend::OnDevice(std::span<const int32_t> values) {
  if (inputs_ != nullptr) {
    const auto same = [&](std::span<const int32_t> own) {
      return own.data() == values.data() && own.size() == values.size();
    };
    if (same(inputs_->tokens)) return step_.tokens();
    if (same(inputs_->positions)) return step_.positions();
    if (same(inputs_->logit_rows)) return step_.logit_rows();
  }
  if (graphs_.recording()) {
    return absl::FailedPreconditionError("a recorded step used indices that are not its own");
  }
  if (values.size_bytes() > index_scratch_.size()) {
    RETURN_IF_ERROR(Synchronize());
    ASSIGN_OR_RETURN(index_scratch_, DeviceRegion::Create(2 * values.size_bytes()));
  }
  CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(index_scratch_.data(), values.data(), values.size_bytes(),
                                       cudaMemcpyHostToDevice, stream()));
  return reinterpret_cast<const int32_t*>(index_scratch_.data());
}

// --- Ops

absl::Status CudaBackend::EmbedRows(const Matrix& table, common::TokenId first,
                                    std::span<const common::TokenId> tokens, TensorView out) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(out.rows == static_cast<int64_t>(tokens.size()) && out.cols == table.cols(),
                        "EmbedRows"));
  ASSIGN_OR_RETURN(const int32_t* const on_device, OnDevice(tokens));
  const DeviceWeight& weight = static_cast<const DeviceMatrix&>(table).weight();
  if (weight.fp8()) return absl::InvalidArgumentError("EmbedRows: no matrix of the vocabulary");
  CUDA_RETURN_IF_ERROR(LaunchEmbedRows(weight, on_device, first, out, stream()));
  return absl::OkStatus();
}

absl::Status CudaBackend::RmsNorm(TensorView x, TensorView weight, float eps, TensorView out) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(SameShape(x, out) && weight.rows == 1 && weight.cols == x.cols, "RmsNorm"));
  CUDA_RETURN_IF_ERROR(LaunchRmsNorm(x, weight.data, eps, out, stream(), CodesFor(out)));
  return absl::OkStatus();
}

absl::Status CudaBackend::AddRmsNorm(TensorView residual, TensorView x, TensorView weight,
                                     float eps, TensorView out) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(SameShape(residual, x) && SameShape(x, out) && weight.rows == 1 &&
                            weight.cols == x.cols && residual.type == ActivationType::kF32,
                        "AddRmsNorm"));
  CUDA_RETURN_IF_ERROR(
      LaunchAddRmsNorm(residual, x, weight.data, eps, out, stream(), CodesFor(out)));
  return absl::OkStatus();
}

absl::Status CudaBackend::MatMul(TensorView x, std::span<const Matrix* const> weights,
                                 std::span<const TensorView> outs) {
  RETURN_IF_ERROR(device_.MakeCurrent());
  RETURN_IF_ERROR(Shape(weights.size() == outs.size(), "MatMul"));
  absl::InlinedVector<DeviceWeight, 4> on_device;
  for (size_t i = 0; i < weights.size(); ++i) {
    on_device.push_back(static_cast<const DeviceMatrix&>(*weights[i]).weight());
    RETURN_IF_ERROR(Shape(weights[i]->cols() == x.cols && outs[i].rows == x.rows &&
                              outs[i].cols == weights[i]->rows(),
                          "MatMul"));
  }
  if (matmul_ == nullptr) RETURN_IF_ERROR(MakeMatMul());
  return matmul_->Run(x, on_device, outs, stream());
}

absl::Status CudaBackend::MakeMatMul() {
  ASSIGN_OR_RETURN(workspace_, DeviceRegion::Create(MatMulRunner::WorkspaceBytes(limits_)));
  matmul_ = std::make_unique<MatMulRunner>(&*lt_, limits_, workspace_.data());
  return absl::OkStatus();
}

absl::Status CudaBackend::AddBias(TensorView x, TensorView bias) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(bias.cols == x.cols && bias.type == ActivationType::kF32, "AddBias"));
  CUDA_RETURN_IF_ERROR(LaunchAddBias(x, bias.data, stream()));
  return absl::OkStatus();
}

absl::Status CudaBackend::Rope(TensorView x, int32_t heads, std::span<const int32_t> positions,
                               const RopeTable& table) {
  RETURN_IF_ERROR(Enter());
  const auto& angles = static_cast<const DeviceAngles&>(table);
  RETURN_IF_ERROR(Shape(heads > 0 && x.cols % heads == 0 &&
                            2 * angles.angles().pairs <= x.cols / heads &&
                            x.rows == static_cast<int64_t>(positions.size()),
                        "Rope"));
  for (const int32_t position : positions) {
    RETURN_IF_ERROR(Shape(position >= 0 && position < angles.max_positions(), "Rope"));
  }
  ASSIGN_OR_RETURN(const int32_t* const on_device, OnDevice(positions));
  CUDA_RETURN_IF_ERROR(LaunchRope(x, heads, on_device, angles.angles(), stream()));
  return absl::OkStatus();
}

absl::Status CudaBackend::AppendKv(int32_t layer, TensorView k, TensorView v,
                                   std::span<const AttentionSequence> sequences,
                                   const kvstore::KvArena& kv) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(
      Shape(k.cols == kv.shape.kv_heads * kv.shape.head_dim && SameShape(k, v), "AppendKv"));
  ASSIGN_OR_RETURN(const DeviceStep* const tables,
                   TablesFor(sequences, k.rows, kv, kv.shape.kv_heads, ActivationType::kBf16));
  CUDA_RETURN_IF_ERROR(
      LaunchAppendKv(k, v, tables->sequences(), kv.shape, kv.base, layer, stream()));
  return absl::OkStatus();
}

absl::Status CudaBackend::Attention(const AttentionArgs& args) {
  RETURN_IF_ERROR(Enter());
  const kvstore::KvShape& shape = args.kv->shape;
  RETURN_IF_ERROR(Shape(args.q_heads % shape.kv_heads == 0 &&
                            args.q.cols == args.q_heads * shape.head_dim &&
                            SameShape(args.q, args.out),
                        "Attention"));
  ASSIGN_OR_RETURN(const DeviceStep* const tables,
                   TablesFor(args.sequences, args.q.rows, *args.kv, args.q_heads, args.q.type));
  AttentionRunner& runner = tables == &step_ ? step_attention_ : call_attention_;
  return runner.Run(args, *tables, stream_);
}

absl::Status CudaBackend::SiluMul(TensorView gate, TensorView up) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(SameShape(gate, up), "SiluMul"));
  CUDA_RETURN_IF_ERROR(LaunchSiluMul(gate, up, stream(), CodesFor(gate)));
  return absl::OkStatus();
}

absl::Status CudaBackend::Add(TensorView residual, TensorView x) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(SameShape(residual, x), "Add"));
  CUDA_RETURN_IF_ERROR(LaunchAdd(residual, x, stream()));
  return absl::OkStatus();
}

absl::Status CudaBackend::GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(
      Shape(out.rows == static_cast<int64_t>(rows.size()) && out.cols == x.cols, "GatherRows"));
  for (const int32_t row : rows) {
    RETURN_IF_ERROR(Shape(row >= 0 && row < x.rows, "GatherRows"));
  }
  ASSIGN_OR_RETURN(const int32_t* const on_device, OnDevice(rows));
  CUDA_RETURN_IF_ERROR(LaunchGatherRows(x, on_device, out, stream()));
  return absl::OkStatus();
}

// The kernel writes to the host's memory itself: there is little to write.
absl::Status CudaBackend::Sample(TensorView logits, const SamplingView& how,
                                 std::span<RowChoice> out) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(CheckSampling(logits, how, out));
  if (how.empty()) return absl::OkStatus();
  const DeviceStep* tables = &step_;
  if (inputs_ == nullptr || inputs_->sampling.rows.data() != how.rows.data() ||
      inputs_->sampling.rows.size() != how.rows.size()) {
    if (graphs_.recording()) {
      return absl::FailedPreconditionError("a recorded step sampled rows that are not its own");
    }
    RETURN_IF_ERROR(call_.Upload({.sampling = how}, {}, stream_));
    tables = &call_;
  }
  if (!graphs_.recording() && !IsPinned(out.data()).value_or(false)) {
    return absl::InvalidArgumentError("Sample: the choices must go to pinned memory");
  }
  CUDA_RETURN_IF_ERROR(
      LaunchSampleRows(logits, tables->sampling(), tables->adjustments(), out.data(), stream()));
  return absl::OkStatus();
}

// --- Copies

absl::StatusOr<TensorView> CudaBackend::CopyScratch(int64_t rows, int64_t cols) {
  const size_t bytes = static_cast<size_t>(rows * cols) * sizeof(float);
  if (bytes > copy_scratch_.size()) {
    RETURN_IF_ERROR(Synchronize());
    ASSIGN_OR_RETURN(copy_scratch_, DeviceRegion::Create(bytes));
  }
  return TensorView{reinterpret_cast<float*>(copy_scratch_.data()), rows, cols, cols};
}

absl::Status CudaBackend::CopyToHost(TensorView from, std::span<float> to) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(static_cast<int64_t>(to.size()) == from.rows * from.cols, "CopyToHost"));
  if (to.empty()) return absl::OkStatus();
  if (from.type != ActivationType::kF32) {
    ASSIGN_OR_RETURN(const TensorView scratch, CopyScratch(from.rows, from.cols));
    CUDA_RETURN_IF_ERROR(LaunchGatherRows(from, nullptr, scratch, stream()));
    from = scratch;
  }
  if (from.stride == from.cols && to.size_bytes() <= kMostCopiedBytes &&
      IsPinned(to.data()).value_or(false)) {
    CUDA_RETURN_IF_ERROR(LaunchCopyWords(from.data, to.data(), to.size_bytes(), stream()));
    return absl::OkStatus();
  }
  const size_t row_bytes = static_cast<size_t>(from.cols) * sizeof(float);
  CUDA_RETURN_IF_ERROR(cudaMemcpy2DAsync(
      to.data(), row_bytes, from.data, static_cast<size_t>(from.stride) * sizeof(float), row_bytes,
      static_cast<size_t>(from.rows), cudaMemcpyDeviceToHost, stream()));
  return absl::OkStatus();
}

absl::Status CudaBackend::CopyFromHost(std::span<const float> from, TensorView to) {
  RETURN_IF_ERROR(Enter());
  RETURN_IF_ERROR(Shape(static_cast<int64_t>(from.size()) == to.rows * to.cols, "CopyFromHost"));
  if (from.empty()) return absl::OkStatus();
  TensorView target = to;
  if (to.type != ActivationType::kF32) {
    ASSIGN_OR_RETURN(target, CopyScratch(to.rows, to.cols));
  }
  const size_t row_bytes = static_cast<size_t>(to.cols) * sizeof(float);
  CUDA_RETURN_IF_ERROR(cudaMemcpy2DAsync(
      target.data, static_cast<size_t>(target.stride) * sizeof(float), from.data(), row_bytes,
      row_bytes, static_cast<size_t>(to.rows), cudaMemcpyHostToDevice, stream()));
  if (to.type == ActivationType::kF32) return absl::OkStatus();
  CUDA_RETURN_IF_ERROR(LaunchGatherRows(target, nullptr, to, stream()));
  return absl::OkStatus();
}

absl::Status CudaBackend::Synchronize() {
  RETURN_IF_ERROR(Enter());
  return stream_.Synchronize();
}

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions& options) {
  return cuda::CudaBackend::Create(options);
}

}  // namespace loopserve::worker
