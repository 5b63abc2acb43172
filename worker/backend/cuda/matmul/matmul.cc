#include "worker/backend/cuda/matmul/matmul.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/kernels/fp8_layout.h"
#include "worker/backend/cuda/matmul/kernels/convert.h"
#include "worker/backend/cuda/matmul/kernels/scale_sums.h"
#include "worker/backend/cuda/matmul/kernels/skinny.h"
#include "worker/backend/cuda/matmul/packed_layout.h"
#include "worker/backend/cuda/matmul/packed_weight.h"

namespace loopserve::worker::cuda {
namespace {

constexpr size_t kMaxWeightScratch = size_t{256} << 20;
constexpr std::array kDeviceTypes = {WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1,
                                     WeightType::kQ5_0, WeightType::kQ5_1, WeightType::kQ8_0,
                                     WeightType::kQ4_K, WeightType::kQ6_K};

size_t RoundUp256(size_t bytes) { return (bytes + 255) / 256 * 256; }

size_t XScratchBytes(const MatMulLimits& limits) {
  // At least one row, so that every call can be cut into parts.
  return RoundUp256(static_cast<size_t>(std::max<int64_t>(limits.rows, 1) *
                                        Bf16Pitch(std::max<int64_t>(limits.cols, 1))) *
                    2);
}

size_t WeightScratchBytes(const MatMulLimits& limits) {
  if (limits.quantised_rows == 0) return 0;
  const auto row_bytes = static_cast<size_t>(limits.cols) * 2;
  const auto rows = static_cast<size_t>(TilesOf(limits.quantised_rows, kTileRows) * kTileRows);
  const size_t least = row_bytes * kTileRows;
  return RoundUp256(std::max(least, std::min(rows * row_bytes, kMaxWeightScratch)));
}

size_t Fp8ScratchBytes(const MatMulLimits& limits) {
  if (!limits.fp8) return 0;
  return Fp8Bytes(std::max<int64_t>(limits.rows, 1), std::max<int64_t>(limits.cols, 1));
}

bool SameView(const TensorView& a, const TensorView& b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride &&
         a.type == b.type;
}

absl::Status CheckShapes(const TensorView& x, std::span<const DeviceWeight> weights,
                         std::span<const TensorView> outs) {
  bool fits = weights.size() == outs.size() && x.stride >= x.cols;
  for (size_t i = 0; fits && i < weights.size(); ++i) {
    fits = weights[i].cols == x.cols && outs[i].rows == x.rows && outs[i].cols == weights[i].rows &&
           outs[i].stride >= outs[i].cols && DeviceTypeOf(weights[i].type) == weights[i].type;
  }
  return fits ? absl::OkStatus() : absl::InvalidArgumentError("MatMul: the shapes do not fit");
}

// Whether the library does not take such E4M3 operands; which of both it says is left open.
bool Refused(const absl::Status& status) {
  return absl::IsUnimplemented(status) || absl::IsInvalidArgument(status);
}

}  // namespace

size_t MatMulRunner::WorkspaceBytes(const MatMulLimits& limits) {
  return CublasLt::kWorkspaceBytes + XScratchBytes(limits) + WeightScratchBytes(limits) +
         Fp8ScratchBytes(limits);
}

MatMulRunner::MatMulRunner(CublasLt* lt, const MatMulLimits& limits, std::byte* workspace,
                           const MatMulPaths& paths)
    : lt_(lt),
      paths_(paths),
      lt_workspace_(workspace),
      x_scratch_(workspace + CublasLt::kWorkspaceBytes),
      x_scratch_bytes_(XScratchBytes(limits)),
      weight_scratch_(x_scratch_ + x_scratch_bytes_),
      weight_scratch_bytes_(WeightScratchBytes(limits)),
      fp8_codes_(weight_scratch_ + weight_scratch_bytes_),
      fp8_rows_(limits.fp8 ? std::max<int64_t>(limits.rows, 1) : 0),
      fp8_pitch_(Fp8Pitch(std::max<int64_t>(limits.cols, 1))),
      fp8_scales_(reinterpret_cast<float*>(fp8_codes_ + Fp8ScalesAt(fp8_rows_, fp8_pitch_))) {}

bool MatMulRunner::Readable(const TensorView& x) const {
  return x.type == ActivationType::kBf16 && x.cols % 8 == 0 && x.stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

TensorView MatMulRunner::ScratchX(const TensorView& x) const {
  const int64_t pitch = Bf16Pitch(x.cols);
  return {reinterpret_cast<float*>(x_scratch_), x.rows, pitch, pitch, ActivationType::kBf16};
}

bool MatMulRunner::FewRows(const DeviceWeight& weight, int64_t rows) const {
  if (lt_ == nullptr) return true;
  if (weight.fp8()) return rows <= paths_.fp8_skinny_rows;
  if (weight.type != WeightType::kBF16) return rows <= paths_.quantised_skinny_rows;
  return rows <= paths_.gemv_rows ||
         (rows <= paths_.skinny_rows && weight.rows <= paths_.skinny_outputs);
}

// Outputs of `weight` that one product of cuBLASLt computes.
int64_t MatMulRunner::PartRows(const DeviceWeight& weight) const {
  if (weight.type == WeightType::kBF16) return weight.rows;
  const int64_t fit = static_cast<int64_t>(weight_scratch_bytes_) / (weight.cols * 2);
  return std::min(fit / kTileRows * kTileRows, weight.rows);
}

LtProduct MatMulRunner::PartOf(const TensorView& x, const DeviceWeight& weight,
                               const TensorView& out, int64_t first, int64_t count) const {
  LtProduct product;
  product.weight_pitch = Bf16Pitch(weight.cols);
  product.weight = weight.type == WeightType::kBF16 ? weight.data + first * product.weight_pitch * 2
                                                    : weight_scratch_;
  product.n = count;
  product.x = x;
  product.out = out.Cols(first, count);
  return product;
}

absl::Status MatMulRunner::RunSkinny(TensorView x, WeightType type, bool fp8,
                                     std::span<const DeviceWeight> weights,
                                     std::span<const TensorView> outs, cudaStream_t stream) const {
  SkinnyProduct product;
  product.x_stride = x.stride;
  product.cols = x.cols;
  for (int64_t first = 0; first < x.rows; first += kMaxSkinnyRows) {
    const int64_t count = std::min<int64_t>(kMaxSkinnyRows, x.rows - first);
    product.x = x.Rows(first, count).data;
    product.x_rows = static_cast<int32_t>(count);
    for (size_t i = 0; i < weights.size();) {
      product.count = 0;
      for (; i < weights.size() && product.count < SkinnyProduct::kMaxWeights; ++i) {
        if (weights[i].type != type || weights[i].fp8() != fp8 || weights[i].rows == 0) continue;
        const TensorView out = outs[i].Rows(first, count);
        product.weights[product.count++] = {weights[i].data, weights[i].rows, out.data,
                                            out.stride,      out.type,        weights[i].scales};
      }
      if (product.count == 0) continue;
      const bool gemv =
          type == WeightType::kBF16 && count <= kMaxGemvRows && count <= paths_.gemv_rows;
      RETURN_IF_ERROR(ToStatus(fp8    ? LaunchSkinnyMmaFp8(product, stream)
                               : gemv ? LaunchGemvBf16(product, stream)
                                      : LaunchSkinnyMma(type, product, stream),
                               "MatMul"));
    }
  }
  return absl::OkStatus();
}

absl::Status MatMulRunner::RunLarge(TensorView x, const DeviceWeight& weight, TensorView out,
                                    cudaStream_t stream) {
  const int64_t part = PartRows(weight);
  if (weight.rows > 0 && part == 0) {
    return absl::InvalidArgumentError(
        "MatMul: the workspace was made for no quantised matrix of so many columns");
  }
  for (int64_t first = 0; first < weight.rows; first += part) {
    const int64_t count = std::min(part, weight.rows - first);
    if (weight.type != WeightType::kBF16) {
      RETURN_IF_ERROR(ToStatus(LaunchDequantize(weight.type, weight.data, weight.cols, first, count,
                                                weight_scratch_, stream),
                               "MatMul: decoding weights"));
    }
    const absl::Status status =
        lt_->Run(PartOf(x, weight, out, first, count), lt_workspace_, stream);
    // A shape for which the library has no algorithm: slower, but right.
    if (absl::IsUnimplemented(status)) {
      return RunSkinny(x, weight.type, false, std::span(&weight, 1), std::span(&out, 1), stream);
    }
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

absl::Status MatMulRunner::RunLargeFp8(TensorView x, const DeviceWeight& weight, TensorView out,
                                       cudaStream_t stream) {
  LtProduct product;
  product.weight = weight.data;
  product.n = weight.rows;
  product.out = out;
  product.weight_pitch = Fp8Pitch(x.cols);
  // The padding is zeros on both sides, and counts as columns.
  product.x = {reinterpret_cast<float*>(fp8_codes_), x.rows, product.weight_pitch,
               product.weight_pitch, ActivationType::kBf16};
  product.x_scales = fp8_scales_;
  product.weight_scales = weight.scales;
  if (paths_.library_scales) {
    product.operands = LtOperands::kScaledE4m3;
    const absl::Status status = lt_->Run(product, lt_workspace_, stream);
    if (!Refused(status)) return status;
  }
  product.operands = LtOperands::kE4m3;
  const absl::Status status = lt_->Run(product, lt_workspace_, stream);
  if (Refused(status)) {
    return RunSkinny(x, weight.type, true, std::span(&weight, 1), std::span(&out, 1), stream);
  }
  RETURN_IF_ERROR(status);
  return ToStatus(LaunchScaleSums(out, product.x_scales, weight.scales, stream), "MatMul: scales");
}

absl::Status MatMulRunner::RunPart(TensorView x, std::span<const DeviceWeight> weights,
                                   std::span<const TensorView> outs, cudaStream_t stream) {
  if (!Readable(x)) {
    const TensorView rounded = ScratchX(x);
    RETURN_IF_ERROR(ToStatus(LaunchToBf16(x, rounded.data, rounded.stride, stream), "MatMul: x"));
    x = rounded;
  }
  absl::InlinedVector<DeviceWeight, 4> few;
  absl::InlinedVector<TensorView, 4> few_outs;
  bool has_codes = SameView(std::exchange(coded_, {}), x);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (FewRows(weights[i], x.rows)) {
      few.push_back(weights[i]);
      few_outs.push_back(outs[i]);
    } else if (weights[i].fp8()) {
      if (!std::exchange(has_codes, true)) {
        RETURN_IF_ERROR(ToStatus(LaunchToE4m3(x, {fp8_codes_, fp8_scales_}, stream), "MatMul: x"));
      }
      RETURN_IF_ERROR(RunLargeFp8(x, weights[i], outs[i], stream));
    } else {
      RETURN_IF_ERROR(RunLarge(x, weights[i], outs[i], stream));
    }
  }
  for (const WeightType type : kDeviceTypes) {
    RETURN_IF_ERROR(RunSkinny(x, type, false, few, few_outs, stream));
  }
  return RunSkinny(x, WeightType::kBF16, true, few, few_outs, stream);
}

Fp8Rows MatMulRunner::CodesFor(const TensorView& x) {
  const bool useful = lt_ != nullptr && x.rows > paths_.fp8_skinny_rows && x.rows <= fp8_rows_ &&
                      Fp8Pitch(x.cols) <= fp8_pitch_ && Readable(x);
  if (!useful) return {};
  coded_ = x;
  return {fp8_codes_, fp8_scales_};
}

int64_t MatMulRunner::RowsAtOnce(const TensorView& x, std::span<const DeviceWeight> weights) const {
  int64_t rows = x.rows;
  if (!Readable(x)) {
    rows = std::min(rows, static_cast<int64_t>(x_scratch_bytes_) / (Bf16Pitch(x.cols) * 2));
  }
  const bool fp8 = std::any_of(weights.begin(), weights.end(), [&](const DeviceWeight& weight) {
    return weight.fp8() && !FewRows(weight, x.rows);
  });
  if (!fp8) return rows;
  return Fp8Pitch(x.cols) <= fp8_pitch_ ? std::min(rows, fp8_rows_) : 0;
}

absl::Status MatMulRunner::Run(TensorView x, std::span<const DeviceWeight> weights,
                               std::span<const TensorView> outs, cudaStream_t stream) {
  RETURN_IF_ERROR(CheckShapes(x, weights, outs));
  if (x.rows == 0 || x.cols == 0 || weights.empty()) return absl::OkStatus();
  const int64_t fit = RowsAtOnce(x, weights);
  if (fit >= x.rows) return RunPart(x, weights, outs, stream);
  if (fit == 0) {
    return absl::InvalidArgumentError("MatMul: the workspace was made for fewer columns");
  }
  std::vector<TensorView> parts(outs.size());
  for (int64_t first = 0; first < x.rows; first += fit) {
    const int64_t count = std::min(fit, x.rows - first);
    for (size_t i = 0; i < outs.size(); ++i) parts[i] = outs[i].Rows(first, count);
    RETURN_IF_ERROR(RunPart(x.Rows(first, count), weights, parts, stream));
  }
  return absl::OkStatus();
}

}  // namespace loopserve::worker::cuda
