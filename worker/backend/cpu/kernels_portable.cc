#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/backend/cpu/kernel_table.h"

namespace loopserve::worker::cpu {
namespace {

// Vectors as plain arrays, for machines without any of the others.
struct Portable {
  static constexpr int kWidth = 8;
  struct F {
    float v[kWidth];
  };
  struct I {  // eight 32-bit lanes, or 32 bytes
    union {
      int32_t v[kWidth];
      uint8_t b[kWidth * 4];
    };
  };
  static constexpr int kOutputVectors = 2;
  static constexpr int kQuantRows = 3;
  static constexpr int kPrefetchBytes = 0;
  static constexpr bool kFullUnsigned = true;

  template <class Fn>
  static F Map(Fn fn) {
    F out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = fn(i);
    return out;
  }
  template <class Fn>
  static I MapInt(Fn fn) {
    I out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = fn(i);
    return out;
  }
  template <class Fn>
  static I MapBytes(Fn fn) {
    I out;
    for (int i = 0; i < kWidth * 4; ++i) out.b[i] = fn(i);
    return out;
  }
  static float FromBits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }

  static F Load(const float* p) {
    return Map([p](int i) { return p[i]; });
  }
  static void Store(float* p, F v) {
    for (int i = 0; i < kWidth; ++i) p[i] = v.v[i];
  }
  static void StoreN(float* p, F v, int n) {
    for (int i = 0; i < kWidth; ++i) {
      if (i < n) p[i] = v.v[i];
    }
  }
  static F Set1(float v) {
    return Map([v](int) { return v; });
  }
  static float First(F v) { return v.v[0]; }
  static F Fma(F a, F b, F c) {
    return Map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F Mul(F a, F b) {
    return Map([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F Add(F a, F b) {
    return Map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F Sub(F a, F b) {
    return Map([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F Div(F a, F b) {
    return Map([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F Max(F a, F b) {
    return Map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F Min(F a, F b) {
    return Map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F Abs(F a) {
    return Map([&](int i) { return __builtin_fabsf(a.v[i]); });
  }
  static F Nearest(F a) {
    return Map([&](int i) { return nearbyintf(a.v[i]); });
  }
  static F PowerOfTwo(F n) {
    return Map([&](int i) {
      return FromBits(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23);
    });
  }
  static float ReduceAdd(F v) {
    return ((v.v[0] + v.v[4]) + (v.v[2] + v.v[6])) + ((v.v[1] + v.v[5]) + (v.v[3] + v.v[7]));
  }
  static float ReduceMax(F v) {
    float top = v.v[0];
    for (int i = 1; i < kWidth; ++i) top = v.v[i] > top ? v.v[i] : top;
    return top;
  }

  static F LoadF16(const uint16_t* p) {
    return Map([p](int i) {
      const uint32_t sign = static_cast<uint32_t>(p[i] & 0x8000) << 16;
      const uint32_t rest = p[i] & 0x7fff;
      if (rest >= 0x7c00) return FromBits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
      // Moves the exponent up by 112 with a product, which is exact for subnormals too.
      return FromBits(sign | rest << 13) * 0x1p112f;
    });
  }
  static F LoadBf16(const uint16_t* p) {
    return Map([p](int i) { return FromBits(static_cast<uint32_t>(p[i]) << 16); });
  }
  static void StoreBf16(uint16_t* p, F v) {
    for (int i = 0; i < kWidth; ++i) p[i] = MathKernels<Portable>::ScalarToBf16(v.v[i]);
  }

  static I Zero() { return SetInt(0); }
  static I SetInt(int32_t v) {
    return MapInt([v](int) { return v; });
  }
  static I AddInt(I a, I b) {
    return MapInt([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I ShiftLeft8(I v) {
    return MapInt([&](int i) { return v.v[i] * 256; });
  }
  static int32_t ReduceAddInt(I v) {
    int32_t sum = 0;
    for (int i = 0; i < kWidth; ++i) sum += v.v[i];
    return sum;
  }
  static F FromInt(I v) {
    return Map([&](int i) { return static_cast<float>(v.v[i]); });
  }
  static I Round(F v) {
    return MapInt([&](int i) { return static_cast<int32_t>(nearbyintf(v.v[i])); });
  }
  static void StoreInt8(int8_t* p, I v) {
    for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(v.v[i]);
  }
  static I LoadBytes(const uint8_t* p) {
    return MapBytes([p](int i) { return p[i]; });
  }
  static I LowNibbles(I v) {
    return MapBytes([&](int i) { return static_cast<uint8_t>(v.b[i] & 15); });
  }
  static I HighNibbles(I v) {
    return MapBytes([&](int i) { return static_cast<uint8_t>(v.b[i] >> 4); });
  }
  static I AddFifthBits(I v, const uint8_t* bits) {
    return MapBytes(
        [&](int i) { return static_cast<uint8_t>(v.b[i] + ((bits[i / 8] >> (i % 8) & 1) << 4)); });
  }
  static I Dot(I sum, I codes, const int8_t* four) {
    return MapInt([&](int i) {
      return sum.v[i] + codes.b[4 * i] * four[0] + codes.b[4 * i + 1] * four[1] +
             codes.b[4 * i + 2] * four[2] + codes.b[4 * i + 3] * four[3];
    });
  }
  static I DotSigned(I sum, I codes, const int8_t* four) { return Dot(sum, codes, four); }
  static void Prefetch(const uint8_t*, size_t) {}
};

constexpr Kernels kKernels = MakeKernels<Portable>("portable");

}  // namespace

const Kernels& PortableKernels() { return kKernels; }

}  // namespace loopserve::worker::cpu
