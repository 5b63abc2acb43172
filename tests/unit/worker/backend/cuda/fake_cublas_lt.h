// A cuBLASLt that only pretends: a shared library under the true one's name, whose calls are
// counted and fail when a test says so. Products leave their results as they are. Of E4M3 operands
// it refuses what the true one refuses: a weight that is not transposed, anything off 16 bytes,
// results of another type than float32 and bf16, and scales of only one operand.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cuda {

// How the last product was asked for.
struct FakeLtOperand {
  cudaDataType type = CUDA_R_32F;
  int64_t pitch = 0;  // values
  uint32_t alignment = 0;
  int32_t scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const void* scales = nullptr;
};

struct FakeLt {
  // What the next calls answer.
  cublasStatus_t create = CUBLAS_STATUS_SUCCESS;
  cublasStatus_t matmul = CUBLAS_STATUS_SUCCESS;
  cublasStatus_t heuristic = CUBLAS_STATUS_SUCCESS;
  int algorithms = 1;       // that a search finds
  bool scales_rows = true;  // whether any brings scales of rows into its sums
  // What was asked for.
  size_t searches = 0;
  size_t matmuls = 0;
  uint64_t rows = 0, outputs = 0, inputs = 0;  // of the last product: x's, the weight's, both's
  size_t workspace_bytes = 0;                  // of the last product
  FakeLtOperand weight, x, out;                // of the last product
  // What was made and not yet destroyed.
  int alive = 0;
};

}  // namespace loopserve::worker::cuda
