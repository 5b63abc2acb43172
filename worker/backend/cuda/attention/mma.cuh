// The few instructions of sm_80 and later that the tensor-core kernels are made of.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace loopserve::worker::cuda {

// c += a * b for a 16x16 and a 16x8 fragment of bf16. With g = lane / 4 and j = lane % 4, a lane
// holds a[0] = (row g, cols 2j, 2j + 1), a[1] = (row g + 8, same), a[2] and a[3] those of cols + 8;
// b[0] = (rows 2j, 2j + 1 of col g), b[1] = (rows + 8); c = (row g, cols 2j, 2j + 1), (row g + 8).
__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit elements, transposed: lane l gives the address of row l % 8 of matrix
// l / 8 and gets elements (rows 2j, 2j + 1; col g) of each.
__device__ inline void LoadTransposed(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Starts a copy of 16 bytes into shared memory; zeros, and no read, unless `exists`.
__device__ inline void CopyAsync(void* shared, const void* global, bool exists) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n"
               :
               : "r"(address), "l"(__cvta_generic_to_global(global)), "r"(exists ? 16 : 0)
               : "memory");
}
// Ends a group of this thread's copies.
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits for this thread's groups but the last kPending.
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// 2^x within two units in the last place; 0 for -infinity.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Two bf16 in a word; `low` is the first.
__device__ inline uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return uint32_t(__bfloat16_as_ushort(pair.x)) | uint32_t(__bfloat16_as_ushort(pair.y)) << 16;
}

// a - b of two bf16 each, exact where the difference is.
__device__ inline uint32_t SubtractBf16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(b), "r"(0xbf80bf80u), "r"(a));
  return d;
}

// The signed bytes 0 and 2 of a word as two bf16, exactly: 128 + the low seven bits, less 128 or,
// for a negative one, 256.
__device__ inline uint32_t EvenBytesToBf16(uint32_t word) {
  return SubtractBf16((word & 0x007f007fu) | 0x43004300u, (word & 0x00800080u) | 0x43004300u);
}
// Bytes 1 and 3.
__device__ inline uint32_t OddBytesToBf16(uint32_t word) { return EvenBytesToBf16(word >> 8); }

}  // namespace loopserve::worker::cuda
