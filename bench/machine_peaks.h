// What this machine can do at most: the operations of one kind of arithmetic, out of registers, and
// the bytes read from memory. The limits that benchmarks stand beside.
#pragma once

#include <cstdint>

namespace loopserve::bench {

enum class Arithmetic {
  kBf16,  // dot products of pairs, accumulated in float
  kInt8,  // dot products of fours, accumulated in 32 bits
  kF32,   // multiply and add
};

// Operations per second of all threads together, a multiplication and an addition being two, with
// the widest instruction that the machine has (AMX tiles, AVX-512, AVX2); 0 where it has none. The
// best of several rounds.
double PeakOperations(Arithmetic arithmetic, int threads);

// Bytes per second at which all threads together read a buffer of that size. The best of several
// passes.
double ReadBandwidth(int64_t mebibytes, int threads);

}  // namespace loopserve::bench
