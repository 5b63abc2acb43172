#include <stddef.h>
#include <stdint.h>

#include "worker/backend/cpu/kernel_table.h"

namespace loopserve::worker::cpu {
namespace {

// Four lanes in the compiler's own vectors, which every target has in some form; for machines
// without any of the others. Integers are unsigned, since they may wrap.
struct Portable {
  typedef float F __attribute__((vector_size(16)));
  typedef uint32_t I __attribute__((vector_size(16)));  // four 32-bit lanes, or 16 bytes
  typedef int32_t Signed __attribute__((vector_size(16)));
  typedef uint16_t Words __attribute__((vector_size(16)));
  typedef int16_t SignedWords __attribute__((vector_size(16)));
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(8)));
  typedef int8_t Small __attribute__((vector_size(4)));
  static constexpr int kWidth = 4;
  static constexpr int kOutputVectors = 2;
  static constexpr int kQuantRows = 3;
  static constexpr int kPrefetchBytes = 0;
  static constexpr bool kFullUnsigned = true;

  template <class To, class From>
  static To Bits(From v) {
    return reinterpret_cast<To>(v);
  }
  static F Choose(Signed which, F a, F b) {
    return Bits<F>((which & Bits<Signed>(a)) | (~which & Bits<Signed>(b)));
  }

  static F Load(const float* p) {
    F v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static void Store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }
  static void StoreN(float* p, F v, int n) { __builtin_memcpy(p, &v, sizeof(float) * size_t(n)); }
  static F Set1(float v) { return F{v, v, v, v}; }
  static float First(F v) { return v[0]; }
  static F Fma(F a, F b, F c) { return a * b + c; }
  static F Mul(F a, F b) { return a * b; }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Div(F a, F b) { return a / b; }
  static F Max(F a, F b) { return Choose(a > b, a, b); }
  static F Min(F a, F b) { return Choose(a < b, a, b); }
  static F Abs(F a) { return Bits<F>(Bits<I>(a) & 0x7fffffffu); }
  // Up to 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
  static F Nearest(F a) {
    const F magic = Set1(12582912.0f);
    return (a + magic) - magic;
  }
  static F PowerOfTwo(F n) { return Bits<F>((Round(n) + 127u) << 23); }
  static float ReduceAdd(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static float ReduceMax(F v) {
    const float even = v[0] > v[2] ? v[0] : v[2];
    const float odd = v[1] > v[3] ? v[1] : v[3];
    return even > odd ? even : odd;
  }

  static I Widen(const uint16_t* p) {
    Halves v;
    __builtin_memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, I);
  }
  static F LoadF16(const uint16_t* p) {
    const I half = Widen(p);
    const I sign = (half & 0x8000u) << 16;
    const I rest = half & 0x7fffu;
    const I special = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    // Moves the exponent up by 112 with a product, which is exact for subnormals too.
    const F number = Bits<F>(sign | rest << 13) * 0x1p112f;
    return Choose(rest >= 0x7c00u, Bits<F>(special), number);
  }
  static F LoadBf16(const uint16_t* p) { return Bits<F>(Widen(p) << 16); }
  static void StoreBf16(uint16_t* p, F v) {
    const I bits = Bits<I>(v);
    const I rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    const F kept = Choose(v != v, Bits<F>(bits | 0x400000u), Bits<F>(rounded));
    const Halves high = __builtin_convertvector(Bits<I>(kept) >> 16, Halves);
    __builtin_memcpy(p, &high, sizeof high);
  }

  static I Zero() { return I{}; }
  static I SetInt(int32_t v) { return I{} + static_cast<uint32_t>(v); }
  static I AddInt(I a, I b) { return a + b; }
  static I ShiftLeft8(I v) { return v << 8; }
  static int32_t ReduceAddInt(I v) { return static_cast<int32_t>(v[0] + v[1] + v[2] + v[3]); }
  static F FromInt(I v) { return __builtin_convertvector(Bits<Signed>(v), F); }
  static I Round(F v) { return Bits<I>(__builtin_convertvector(Nearest(v), Signed)); }
  static void StoreInt8(int8_t* p, I v) {
    const Small low = __builtin_convertvector(v, Small);
    __builtin_memcpy(p, &low, sizeof low);
  }
  static I LoadBytes(const uint8_t* p) {
    I v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static I LowNibbles(I v) { return v & 0x0f0f0f0fu; }
  static I HighNibbles(I v) { return v >> 4 & 0x0f0f0f0fu; }
  static I AddFifthBits(I v, const uint8_t* bits) {
    const uint8_t a = bits[0];
    const uint8_t b = bits[1];
    const Bytes spread = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
    const Bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return v + (Bits<I>((spread & bit) == bit) & 0x10101010u);
  }
  // In each lane, bytes 0 and 2 of `codes` times two factors: products of 16 bits, widened.
  static I DotPair(I codes, SignedWords factors) {
    const I products = Bits<I>(Bits<Words>(codes & 0x00ff00ffu) * Bits<Words>(factors));
    return Bits<I>(Bits<Signed>(products << 16) >> 16) + Bits<I>(Bits<Signed>(products) >> 16);
  }
  static I Dot(I sum, I codes, const int8_t* four) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof word);
    const I factors = SetInt(word);
    const SignedWords even = Bits<SignedWords>(Bits<Words>(factors) << 8) >> 8;
    const SignedWords odd = Bits<SignedWords>(factors) >> 8;
    return sum + (DotPair(codes, even) + DotPair(codes >> 8, odd));
  }
  static I DotSigned(I sum, I codes, const int8_t* four) { return Dot(sum, codes, four); }
  static void Prefetch(const uint8_t*, size_t) {}
};

constexpr Kernels kKernels = MakeKernels<Portable>("portable");
constexpr Kernels kInt8Kernels = MakeKernels<Portable, 1>("portable-int8");

}  // namespace

const Kernels& PortableKernels() { return kKernels; }
const Kernels& PortableInt8Kernels() { return kInt8Kernels; }

}  // namespace loopserve::worker::cpu
