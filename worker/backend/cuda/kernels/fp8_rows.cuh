// A row made E4M3 by the block that has written or read it (fp8_rows.h).
#pragma once

#include "common/e4m3.h"
#include "worker/backend/cuda/kernels/fp8_layout.h"
#include "worker/backend/cuda/kernels/fp8_rows.h"
#include "worker/backend/cuda/kernels/values.cuh"

namespace loopserve::worker::cuda {

// Four codes, the first value's in the lowest byte.
__device__ __forceinline__ uint32_t PackE4m3(const float (&v)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v[1]), "f"(v[0]));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v[3]), "f"(v[2]));
  return static_cast<uint32_t>(high) << 16 | low;
#else
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= uint32_t{common::FloatToE4m3(v[i])} << (8 * i);
  return word;
#endif
}

// Magnitudes as bits order like magnitudes, with infinity and then NaN above all numbers.
__device__ __forceinline__ uint32_t Larger(uint32_t bits, const float (&v)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j) bits = max(bits, __float_as_uint(v[j]) & 0x7fffffffU);
  return bits;
}

// Of a magnitude as a value of type T has it: rounding keeps the order.
template <class T>
__device__ __forceinline__ uint32_t RoundedBits(uint32_t bits) {
  T rounded;
  Store(&rounded, __uint_as_float(bits));
  return __float_as_uint(Load(&rounded)) & 0x7fffffffU;
}

// The largest of all threads of the block. `scratch`: a word for each warp.
__device__ __forceinline__ uint32_t BlockMax(uint32_t bits, uint32_t* scratch) {
  bits = __reduce_max_sync(0xffffffffU, bits);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = bits;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) bits = max(bits, scratch[w]);
  return bits;
}

// The scale of a row whose largest magnitude has these bits.
__device__ __forceinline__ float Fp8Scale(uint32_t largest) {
  constexpr float kSmallest = 1.17549435e-38f;  // a normal number, so its inverse is finite
  if (largest >= 0x7f800000U) return __uint_as_float(0x7fc00000U);
  return fmaxf(__uint_as_float(largest) / common::kLargestE4m3, kSmallest);
}

// kVector values of a row from column i on, zeros beyond the last. kN: values of a load.
template <int kN, class T>
__device__ __forceinline__ void ReadChunk(const T* row, int64_t i, int64_t cols,
                                          float (&v)[kVector]) {
  if constexpr (kN == kVector) {
    if (i < cols) return Load8(row + i, v);
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) v[j] = i + j < cols ? Load(row + i + j) : 0.0f;
}

// Writes the codes and the scale of row number `row`. `largest`: over the values that this thread
// has met, which are the chunks threadIdx.x, threadIdx.x + blockDim.x, ... of kVector columns; it
// reads these again. All threads of the block call this.
template <int kN, class T>
__device__ __forceinline__ void WriteCodes(const T* values, int64_t cols, uint32_t largest,
                                           const Fp8Rows& to, int64_t row, uint32_t* scratch) {
  const float scale = Fp8Scale(BlockMax(largest, scratch));
  if (threadIdx.x == 0) to.scales[row] = scale;
  const float inverse = 1.0f / scale;
  const int64_t pitch = Fp8Pitch(cols);
  auto* const codes = static_cast<uint8_t*>(to.codes) + row * pitch;
  for (int64_t i = int64_t{threadIdx.x} * kVector; i < pitch; i += int64_t{blockDim.x} * kVector) {
    float v[kVector];
    ReadChunk<kN>(values, i, cols, v);
    const float first[4] = {v[0] * inverse, v[1] * inverse, v[2] * inverse, v[3] * inverse};
    const float second[4] = {v[4] * inverse, v[5] * inverse, v[6] * inverse, v[7] * inverse};
    *reinterpret_cast<uint2*>(codes + i) = {PackE4m3(first), PackE4m3(second)};
  }
}

}  // namespace loopserve::worker::cuda
