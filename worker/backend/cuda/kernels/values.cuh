// Loading and storing activations of either type, one by one or eight at a time, and sums over a
// block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

constexpr int kWarp = 32;
constexpr int kVector = 8;  // values of a vector access: 16 bytes of bf16, twice that of f32

template <class T>
struct View {
  T* data;
  int64_t stride;
  __device__ T* row(int64_t r) const { return data + r * stride; }
};

template <class T>
View<T> Typed(const TensorView& view) {
  return {reinterpret_cast<T*>(view.data), view.stride};
}

__device__ inline float Load(const float* at) { return *at; }
__device__ inline float Load(const __nv_bfloat16* at) { return __bfloat162float(*at); }
__device__ inline void Store(float* at, float value) { *at = value; }
__device__ inline void Store(__nv_bfloat16* at, float value) { *at = __float2bfloat16_rn(value); }

__device__ inline void Load8(const float* at, float (&out)[kVector]) {
  const float4 a = reinterpret_cast<const float4*>(at)[0];
  const float4 b = reinterpret_cast<const float4*>(at)[1];
  out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
  out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
__device__ inline void Load8(const __nv_bfloat16* at, float (&out)[kVector]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(at);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
  }
}
__device__ inline void Store8(float* at, const float (&v)[kVector]) {
  reinterpret_cast<float4*>(at)[0] = make_float4(v[0], v[1], v[2], v[3]);
  reinterpret_cast<float4*>(at)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ inline void Store8(__nv_bfloat16* at, const float (&v)[kVector]) {
  uint4 raw;
  uint32_t* words = &raw.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  *reinterpret_cast<uint4*>(at) = raw;
}

// kN values at `at`, kN = 8 or 1; vector accesses need 16-byte addresses (CanVectorize).
template <int kN, class T>
__device__ inline void LoadN(const T* at, float (&out)[kN]) {
  if constexpr (kN == kVector) {
    Load8(at, out);
  } else {
    out[0] = Load(at);
  }
}
template <int kN, class T>
__device__ inline void StoreN(T* at, const float (&v)[kN]) {
  if constexpr (kN == kVector) {
    Store8(at, v);
  } else {
    Store(at, v[0]);
  }
}

// Whether every row of the view starts at a 16-byte address and holds whole vectors.
inline bool CanVectorize(const TensorView& view) {
  return view.cols % kVector == 0 && view.stride % kVector == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// The sum over all threads of the block, in every thread; the order of additions depends on nothing
// but the block's size. `scratch` holds 32 floats of shared memory.
__device__ inline float BlockSum(float value, float* scratch) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, offset);
  }
  const int warps = (blockDim.x + kWarp - 1) / kWarp;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < warps; ++i) sum += scratch[i];
  __syncthreads();
  return sum;
}

// Calls `call` with a null pointer of the activation's type.
template <class Call>
cudaError_t WithType(ActivationType type, Call&& call) {
  if (type == ActivationType::kF32) return call(static_cast<float*>(nullptr));
  return call(static_cast<__nv_bfloat16*>(nullptr));
}

}  // namespace loopserve::worker::cuda
