// Marks of functions that nvcc compiles for the device, so that host code and kernels share one
// definition. Nothing to any other compiler, so tests of a host run the same code.
//
// LOOPSERVE_HOST_DEVICE: for both. LOOPSERVE_DEVICE: for the device alone, where nvcc compiles it.
// LOOPSERVE_UNROLL: before a loop over a small array, which then can stay in registers.
#pragma once

#if defined(__CUDACC__)
#define LOOPSERVE_HOST_DEVICE __host__ __device__
#define LOOPSERVE_DEVICE __device__
#else
#define LOOPSERVE_HOST_DEVICE
#define LOOPSERVE_DEVICE
#endif

#if defined(__CUDA_ARCH__)
#define LOOPSERVE_UNROLL _Pragma("unroll")
#else
#define LOOPSERVE_UNROLL
#endif
