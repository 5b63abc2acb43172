// MatMulRunner: matrix products on a GPU, out[t, n] = sum_k x[t, k] * weight[n, k].
//
// The number of rows decides how: a few rows are bound by reading the weights and take kernels that
// read them once, as they are packed; many rows are bound by arithmetic and go to cuBLASLt, which
// wants quantised weights decoded to bf16 first; a shape that it refuses takes the kernels for few
// rows, 64 at a time. Whatever the path, x is rounded to bf16 and sums
// are float32. Where many rows meet E4M3 weights, x is rounded further, to E4M3 with one scale per
// row, and the library multiplies codes; few rows keep bf16, as nothing would be gained.
//
// Thread rule: the backend's thread, and one stream, because calls share the workspace.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "worker/backend/cuda/kernels/fp8_rows.h"
#include "worker/backend/cuda/matmul/cublas_lt.h"
#include "worker/backend/cuda/matmul/device_weight.h"
#include "worker/backend/tensor.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

// The largest calls that a workspace is made for. Larger ones work, too, in parts.
struct MatMulLimits {
  int64_t rows = 0;            // of x
  int64_t cols = 0;            // of x
  int64_t quantised_rows = 0;  // outputs of the largest quantised matrix; 0: there is none
  bool fp8 = false;            // there are E4M3 matrices
  bool operator==(const MatMulLimits&) const = default;
};

// Up to how many rows each path is taken; measured with bench/matmul_bench on an H200.
struct MatMulPaths {
  int64_t gemv_rows = 2;          // bf16 weights, fused multiply-adds
  int64_t skinny_rows = 16;       // bf16 weights of few outputs, tensor cores
  int64_t skinny_outputs = 4096;  // what "few outputs" are: the library fills the GPU with more
  int64_t quantised_skinny_rows = 64;  // quantised weights, decoded in registers
  int64_t fp8_skinny_rows = 16;        // E4M3 weights; not measured yet
  // Whether the library is asked to bring the scales of E4M3 operands into its sums. Where it is
  // not, or cannot (compute capability 8.9), a kernel does so behind it.
  bool library_scales = true;
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

  // Where the kernel that writes x now shall leave its codes for the next Run, if that is of this
  // very view; nothing where no Run could use them. Whether this one will is not known: codes are
  // for nothing where its weights are none of E4M3 (the output matrix) or ranks gather x first.
  // Every op that may write to x before it says so. A communicator does not, and need not: it
  // writes to outputs of products and to buffers of its own, whose views are never x's.
  Fp8Rows CodesFor(const TensorView& x);
  void ForgetCodes() { coded_ = {}; }

 private:
  // x as the paths read it: bf16, padded to a multiple of 8 columns, rows on 16 bytes.
  bool Readable(const TensorView& x) const;
  TensorView ScratchX(const TensorView& x) const;
  // What cuBLASLt computes for outputs [first, first + count) of `weight`.
  LtProduct PartOf(const TensorView& x, const DeviceWeight& weight, const TensorView& out,
                   int64_t first, int64_t count) const;
  bool FewRows(const DeviceWeight& weight, int64_t rows) const;
  int64_t PartRows(const DeviceWeight& weight) const;
  // How many rows of x the workspace can take at once in other forms than its own.
  int64_t RowsAtOnce(const TensorView& x, std::span<const DeviceWeight> weights) const;
  absl::Status RunPart(TensorView x, std::span<const DeviceWeight> weights,
                       std::span<const TensorView> outs, cudaStream_t stream);
  // Those of the weights that are of this type.
  absl::Status RunSkinny(TensorView x, WeightType type, bool fp8,
                         std::span<const DeviceWeight> weights, std::span<const TensorView> outs,
                         cudaStream_t stream) const;
  absl::Status RunLarge(TensorView x, const DeviceWeight& weight, TensorView out,
                        cudaStream_t stream);
  // The same of E4M3 weights, when x's codes are there.
  absl::Status RunLargeFp8(TensorView x, const DeviceWeight& weight, TensorView out,
                           cudaStream_t stream);

  CublasLt* const lt_;
  const MatMulPaths paths_;
  std::byte* const lt_workspace_;
  std::byte* const x_scratch_;
  const size_t x_scratch_bytes_;
  std::byte* const weight_scratch_;
  const size_t weight_scratch_bytes_;
  // x as fp8_layout.h has it, for at most so many rows and columns.
  std::byte* const fp8_codes_;
  const int64_t fp8_rows_;
  const int64_t fp8_pitch_;
  float* const fp8_scales_;
  TensorView coded_;  // whose codes are there; no data: nobody's
};

}  // namespace loopserve::worker::cuda
