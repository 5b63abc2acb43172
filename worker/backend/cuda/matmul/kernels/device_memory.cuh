// Reads and writes of device memory that all product kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "worker/backend/cuda/matmul/kernels/skinny.h"

namespace loopserve::worker::cuda {

// Of memory that is read once: past L1, which is left to the activations.
__device__ __forceinline__ uint4 LoadStream16(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
__device__ __forceinline__ uint2 LoadStream8(const void* from) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(from));
  return v;
}

// The two bf16 of a word, the lower half first.
__device__ __forceinline__ float LowBf16(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float HighBf16(uint32_t word) {
  return __uint_as_float(word & 0xffff0000U);
}
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float HalfBits(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ __forceinline__ void StoreOutput(const SkinnyWeight& weight, int64_t x_row, int64_t row,
                                            float value) {
  const int64_t at = x_row * weight.out_stride + row;
  if (weight.out_type == ActivationType::kF32) {
    static_cast<float*>(weight.out)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(weight.out)[at] = __float2bfloat16_rn(value);
  }
}

// Which matrix a thread block (or warp) with number `unit` works on when matrix i has
// ceil(rows / per_unit) of them, and its number within; -1 beyond the last.
__device__ __forceinline__ int WeightOfUnit(const SkinnyProduct& product, int64_t per_unit,
                                            int64_t& unit) {
#pragma unroll
  for (int i = 0; i < SkinnyProduct::kMaxWeights; ++i) {
    if (i >= product.count) break;
    const int64_t units = (product.weights[i].rows + per_unit - 1) / per_unit;
    if (unit < units) return i;
    unit -= units;
  }
  return -1;
}

inline int64_t UnitsOf(const SkinnyProduct& product, int64_t per_unit) {
  int64_t units = 0;
  for (int i = 0; i < product.count; ++i) {
    units += (product.weights[i].rows + per_unit - 1) / per_unit;
  }
  return units;
}

}  // namespace loopserve::worker::cuda
