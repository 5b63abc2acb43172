#include "tests/unit/worker/backend/cuda/fake_cublas_lt.h"

#include <cstring>

using loopserve::worker::cuda::FakeLt;
using loopserve::worker::cuda::FakeLtOperand;

namespace {

FakeLt state;

struct Layout {
  uint64_t rows, cols;
  cudaDataType type;
  int64_t pitch;
};

struct Description {
  int32_t transposes_a = CUBLAS_OP_N;
  FakeLtOperand a, b;
};

struct Preference {
  uint32_t a = 256, b = 256, d = 256;  // alignment in bytes
};

FakeLtOperand Operand(FakeLtOperand described, const Layout& layout, uint32_t alignment) {
  described.type = layout.type;
  described.pitch = layout.pitch;
  described.alignment = alignment;
  return described;
}

uint32_t ValueBytes(cudaDataType type) {
  if (type == CUDA_R_32F) return 4;
  return type == CUDA_R_16BF ? 2 : 1;
}

bool On16Bytes(const FakeLtOperand& operand) {
  return operand.alignment % 16 == 0 && operand.pitch * ValueBytes(operand.type) % 16 == 0;
}

// Of products that have been described in `state`.
bool CanMultiply(const Description& description) {
  const FakeLtOperand& w = state.weight;
  const FakeLtOperand& x = state.x;
  if (w.type != CUDA_R_8F_E4M3 && x.type != CUDA_R_8F_E4M3) return true;
  const bool outer = w.scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  return w.type == x.type && description.transposes_a == CUBLAS_OP_T && On16Bytes(w) &&
         On16Bytes(x) && On16Bytes(state.out) && state.inputs % 16 == 0 &&
         state.outputs % 16 == 0 && state.out.type != CUDA_R_8F_E4M3 &&
         w.scale_mode == x.scale_mode && outer == (w.scales != nullptr) &&
         outer == (x.scales != nullptr) && (state.scales_rows || !outer);
}

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

template <class Value>
cublasStatus_t Assign(Value& to, const void* from, size_t bytes) {
  if (bytes != sizeof to) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

FakeLt* FakeLtState() { return &state; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return state.create != CUBLAS_STATUS_SUCCESS ? state.create : Make(handle, 0);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return Destroy<int>(handle); }

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t pitch) {
  return Make(layout, Layout{rows, cols, type, pitch});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(const cublasLtMatrixLayout_t layout) {
  return Destroy<Layout>(layout);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t,
                                        cudaDataType_t) {
  return Make(description, Description());
}
cublasStatus_t cublasLtMatmulDescDestroy(const cublasLtMatmulDesc_t description) {
  return Destroy<Description>(description);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  auto& d = *reinterpret_cast<Description*>(description);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return Assign(d.transposes_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return Assign(d.a.scale_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return Assign(d.b.scale_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return Assign(d.a.scales, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return Assign(d.b.scales, value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Make(preference, Preference());
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(const cublasLtMatmulPreference_t preference) {
  return Destroy<Preference>(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  auto& p = *reinterpret_cast<Preference*>(preference);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return Assign(p.a, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return Assign(p.b, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return Assign(p.d, value, bytes);
    default:
      return CUBLAS_STATUS_SUCCESS;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t weight,
                                              cublasLtMatrixLayout_t x, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t preference, int,
                                              cublasLtMatmulHeuristicResult_t* result, int* found) {
  ++state.searches;
  const auto& d = *reinterpret_cast<const Description*>(description);
  const auto& p = *reinterpret_cast<const Preference*>(preference);
  const auto& w = *reinterpret_cast<const Layout*>(weight);
  state.inputs = w.rows;
  state.outputs = w.cols;
  state.weight = Operand(d.a, w, p.a);
  state.x = Operand(d.b, *reinterpret_cast<const Layout*>(x), p.b);
  state.out = Operand({}, *reinterpret_cast<const Layout*>(out), p.d);
  *result = {};
  result->state = CUBLAS_STATUS_SUCCESS;
  *found = CanMultiply(d) ? state.algorithms : 0;
  return state.heuristic;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t description, const void*,
                              const void*, cublasLtMatrixLayout_t weight, const void*,
                              cublasLtMatrixLayout_t x, const void*, const void*,
                              cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t,
                              const cublasLtMatmulAlgo_t*, void*, size_t workspace_bytes,
                              cudaStream_t) {
  ++state.matmuls;
  state.inputs = reinterpret_cast<const Layout*>(weight)->rows;
  state.outputs = reinterpret_cast<const Layout*>(weight)->cols;
  state.rows = reinterpret_cast<const Layout*>(x)->cols;
  state.workspace_bytes = workspace_bytes;
  const auto& d = *reinterpret_cast<const Description*>(description);
  state.weight.scales = d.a.scales;
  state.x.scales = d.b.scales;
  return state.matmul;
}

}  // extern "C"
