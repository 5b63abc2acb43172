// A cuBLASLt that only pretends: a shared library under the true one's name, whose calls are
// counted and fail when a test says so. Products leave their results as they are.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cuda {

struct FakeLt {
  // What the next calls answer.
  cublasStatus_t create = CUBLAS_STATUS_SUCCESS;
  cublasStatus_t matmul = CUBLAS_STATUS_SUCCESS;
  cublasStatus_t heuristic = CUBLAS_STATUS_SUCCESS;
  int algorithms = 1;  // that a search finds
  // What was asked for.
  size_t searches = 0;
  size_t matmuls = 0;
  uint64_t rows = 0, outputs = 0, inputs = 0;  // of the last product: x's, the weight's, both's
  size_t workspace_bytes = 0;                  // of the last product
  // What was made and not yet destroyed.
  int alive = 0;
};

}  // namespace loopserve::worker::cuda
