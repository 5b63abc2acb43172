#include "tests/unit/worker/backend/cuda/fake_cublas_lt.h"

using loopserve::worker::cuda::FakeLt;

namespace {

FakeLt state;

struct Layout {
  uint64_t rows, cols;
};

template <class Handle, class Value>
cublasStatus_t Make(Handle* handle, const Value& value) {
  *handle = reinterpret_cast<Handle>(new Value(value));
  ++state.alive;
  return CUBLAS_STATUS_SUCCESS;
}

template <class Value, class Handle>
cublasStatus_t Destroy(Handle handle) {
  delete reinterpret_cast<const Value*>(handle);
  --state.alive;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

FakeLt* FakeLtState() { return &state; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return state.create != CUBLAS_STATUS_SUCCESS ? state.create : Make(handle, 0);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return Destroy<int>(handle); }

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType,
                                          uint64_t rows, uint64_t cols, int64_t) {
  return Make(layout, Layout{rows, cols});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(const cublasLtMatrixLayout_t layout) {
  return Destroy<Layout>(layout);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t,
                                        cudaDataType_t) {
  return Make(description, 0);
}
cublasStatus_t cublasLtMatmulDescDestroy(const cublasLtMatmulDesc_t description) {
  return Destroy<int>(description);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
                                              const void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Make(preference, 0);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(const cublasLtMatmulPreference_t preference) {
  return Destroy<int>(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t,
                                                    const void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t* result, int* found) {
  ++state.searches;
  *result = {};
  result->state = CUBLAS_STATUS_SUCCESS;
  *found = state.algorithms;
  return state.heuristic;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*,
                              cublasLtMatrixLayout_t weight, const void*, cublasLtMatrixLayout_t x,
                              const void*, const void*, cublasLtMatrixLayout_t, void*,
                              cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t*, void*,
                              size_t workspace_bytes, cudaStream_t) {
  ++state.matmuls;
  state.inputs = reinterpret_cast<const Layout*>(weight)->rows;
  state.outputs = reinterpret_cast<const Layout*>(weight)->cols;
  state.rows = reinterpret_cast<const Layout*>(x)->cols;
  state.workspace_bytes = workspace_bytes;
  return state.matmul;
}

}  // extern "C"
