// E4M3 codes as bf16, two at a time and exactly: what tensor-core kernels do with them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace loopserve::worker::cuda {

// The codes in bytes 1 and 3 of a word: shifted to their place, exponent and mantissa are those of
// a number that is smaller by 2^-120, denormals too. (An instruction that converts E4M3 makes f16
// of it, which would take two more to bf16.) NaN becomes a number: where its code is written, the
// scale of the vector is NaN.
__device__ __forceinline__ uint32_t OddE4m3ToBf16(uint32_t word) {
  const uint32_t shifted = (word & 0x80008000u) | (word >> 4 & 0x07f007f0u);
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n"
      : "=r"(d)
      : "r"(shifted), "r"(0x7b807b80u), "r"(0x80008000u));
  return d;
}
// Bytes 0 and 2.
__device__ __forceinline__ uint32_t EvenE4m3ToBf16(uint32_t word) {
  return OddE4m3ToBf16(word << 8);
}

}  // namespace loopserve::worker::cuda
