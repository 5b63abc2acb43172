// MatMulRunner: matrix products on a GPU, out[t, n] = sum_k x[t, k] * weight[n, k].
//
// The number of rows decides how: a few rows are bound by reading the weights and take kernels that
// read them once, as they are packed; many rows are bound by arithmetic and go to cuBLASLt, which
// wants quantised weights decoded to bf16 first; a shape that it refuses takes the kernels for few
// rows, 64 at a time. Whatever the path, x is rounded to bf16 and sums
// are float32.
//
// Thread rule: the backend's thread, and one stream, because calls share the workspace.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "worker/backend/cuda/matmul/cublas_lt.h"
#include "worker/backend/tensor.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

// A matrix in device memory, as PackForDevice makes it; the memory begins on 256 bytes.
struct DeviceWeight {
  WeightType type = WeightType::kBF16;  // DeviceTypeOf the file's
  const std::byte* data = nullptr;
  int64_t rows = 0;  // outputs
  int64_t cols = 0;
};

// The largest calls that a workspace is made for. Larger ones work, too, in parts.
struct MatMulLimits {
  int64_t rows = 0;            // of x
  int64_t cols = 0;            // of x
  int64_t quantised_rows = 0;  // outputs of the largest quantised matrix; 0: there is none
  bool operator==(const MatMulLimits&) const = default;
};

// Up to how many rows each path is taken; measured with bench/matmul_bench on an H200.
struct MatMulPaths {
  int64_t gemv_rows = 2;          // bf16 weights, fused multiply-adds
  int64_t skinny_rows = 16;       // bf16 weights of few outputs, tensor cores
  int64_t skinny_outputs = 4096;  // what "few outputs" are: the library fills the GPU with more
  int64_t quantised_skinny_rows = 64;  // quantised weights, decoded in registers
};

class MatMulRunner final {
 public:
  static size_t WorkspaceBytes(const MatMulLimits& limits);

  // `lt` and `workspace` (device memory on 256 bytes, WorkspaceBytes(limits) of it) outlive the
  // runner. Without `lt` all products take the kernels for few rows, 64 rows at a time.
  MatMulRunner(CublasLt* lt, const MatMulLimits& limits, std::byte* workspace,
               const MatMulPaths& paths = {});

  // Several weights, all of x.cols columns, share one pass over x. Outputs overlap neither each
  // other nor x. InvalidArgument for shapes that do not fit; other errors are those of a launch.
  absl::Status Run(TensorView x, std::span<const DeviceWeight> weights,
                   std::span<const TensorView> outs, cudaStream_t stream);

 private:
  // x as the paths read it: bf16, padded to a multiple of 8 columns, rows on 16 bytes.
  bool Readable(const TensorView& x) const;
  TensorView ScratchX(const TensorView& x) const;
  // What cuBLASLt computes for outputs [first, first + count) of `weight`.
  LtProduct PartOf(const TensorView& x, const DeviceWeight& weight, const TensorView& out,
                   int64_t first, int64_t count) const;
  bool FewRows(const DeviceWeight& weight, int64_t rows) const;
  int64_t PartRows(const DeviceWeight& weight) const;
  absl::Status RunPart(TensorView x, std::span<const DeviceWeight> weights,
                       std::span<const TensorView> outs, cudaStream_t stream);
  absl::Status RunSkinny(TensorView x, WeightType type, std::span<const DeviceWeight> weights,
                         std::span<const TensorView> outs, cudaStream_t stream) const;
  absl::Status RunLarge(TensorView x, const DeviceWeight& weight, TensorView out,
                        cudaStream_t stream);

  CublasLt* const lt_;
  const MatMulPaths paths_;
  std::byte* const lt_workspace_;
  std::byte* const x_scratch_;
  const size_t x_scratch_bytes_;
  std::byte* const weight_scratch_;
  const size_t weight_scratch_bytes_;
};

}  // namespace loopserve::worker::cuda
