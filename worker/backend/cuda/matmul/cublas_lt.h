// CublasLt: matrix products of many rows by NVIDIA's library, which is loaded at run time so that a
// build needs only its header and a machine without a GPU nothing at all.
//
// The algorithm of a shape is asked of the library once, for a size of x rounded up, and kept.
// Asking launches nothing and takes microseconds. The library may load code on an algorithm's first
// use, so a product has to have run once before it is captured in a graph.
//
// Thread rule: one caller at a time; the current device is the one of the memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/backend/cuda/matmul/lt_shape.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

// out[t, n] = sum_k x[t, k] * weight[n, k]; x and weight bf16 or E4M3, sums float32.
struct LtProduct {
  LtOperands operands = LtOperands::kBf16;
  const void* weight = nullptr;  // [n, k], rows `weight_pitch` values apart
  int64_t weight_pitch = 0;
  int64_t n = 0;
  TensorView x;    // [t, k]; of codes, whatever its type says, k and the stride are bytes
  TensorView out;  // [t, n]
  // kScaledE4m3: factors in device memory, on 16 bytes, of the weight's rows [n] and of x's [t].
  const float* weight_scales = nullptr;
  const float* x_scales = nullptr;
};

class CublasLt final {
 public:
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;
  static constexpr int64_t kE4m3Outputs = 16;  // of E4M3 weights: multiples of so many

  // Looks for libcublasLt.so.13 where the system's loader does, then in `folders`, then in
  // /usr/local/cuda/lib64. NotFound with what to install; Internal when the library fails.
  static absl::StatusOr<CublasLt> Load(std::span<const std::string> folders = {});
  CublasLt(CublasLt&&) noexcept;
  CublasLt& operator=(CublasLt&&) noexcept;
  ~CublasLt();

  // Puts the product on `stream`. `workspace`: kWorkspaceBytes of device memory, aligned to 256,
  // which nothing else uses before the product is done. Unimplemented, or InvalidArgument, for what
  // the library cannot: E4M3 needs addresses, rows of all three, k and n on 16 bytes and a device
  // of compute capability 8.9, kScaledE4m3 one of 9.0.
  absl::Status Run(const LtProduct& product, void* workspace, cudaStream_t stream);

 private:
  class Impl;
  explicit CublasLt(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace loopserve::worker::cuda
