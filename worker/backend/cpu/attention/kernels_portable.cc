#include "worker/backend/cpu/attention/chunk_kernels_impl.h"

namespace loopserve::worker::cpu_attention {
namespace {

// Four floats in the compiler's own vectors, which every target has in some form.
struct Portable {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static constexpr int kTileVectors = 2;
  static constexpr bool kStreams = false;

  LOOPSERVE_INLINE F Load(const float* at) {
    F x;
    __builtin_memcpy(&x, at, sizeof x);
    return x;
  }
  LOOPSERVE_INLINE void Store(float* at, F x) { __builtin_memcpy(at, &x, sizeof x); }
  LOOPSERVE_INLINE F Set1(float x) { return F{x, x, x, x}; }
  LOOPSERVE_INLINE float First(F x) { return x[0]; }
  LOOPSERVE_INLINE F Add(F a, F b) { return a + b; }
  LOOPSERVE_INLINE F Sub(F a, F b) { return a - b; }
  LOOPSERVE_INLINE F Mul(F a, F b) { return a * b; }
  LOOPSERVE_INLINE F Max(F a, F b) { return Choose(a > b, a, b); }
  LOOPSERVE_INLINE F Fma(F a, F b, F c) { return a * b + c; }
  LOOPSERVE_INLINE F Choose(I which, F a, F b) {
    return reinterpret_cast<F>((which & reinterpret_cast<I>(a)) |
                               (~which & reinterpret_cast<I>(b)));
  }

  LOOPSERVE_INLINE float ReduceMax(F x) {
    const float low = x[0] > x[1] ? x[0] : x[1];
    const float high = x[2] > x[3] ? x[2] : x[3];
    return low > high ? low : high;
  }
  LOOPSERVE_INLINE float ReduceAdd(F x) { return (x[0] + x[1]) + (x[2] + x[3]); }

  LOOPSERVE_INLINE F Select(F x, uint64_t bits) {
    const int32_t word = static_cast<int32_t>(bits & 0xf);
    const I lane = {1, 2, 4, 8};
    return Choose((I{word, word, word, word} & lane) == lane, x, Set1(-__builtin_inff()));
  }

  LOOPSERVE_INLINE F Exp2(F x) {
    const I none = x < Set1(-126.0f);
    x = Choose(none, Set1(-126.0f), x);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const F magic = Set1(12582912.0f);
    const F shifted = x + magic;
    const F r = x - (shifted - magic);
    F p = Set1(1.326472731307149e-3f);
    p = p * r + Set1(9.671512991189957e-3f);
    p = p * r + Set1(5.550733581185341e-2f);
    p = p * r + Set1(0.24022242426872253f);
    p = p * r + Set1(0.6931470036506653f);
    p = p * r + Set1(1.0f);
    const I power = (reinterpret_cast<I>(shifted) << 23) + 0x3f800000;
    return Choose(none, Set1(0.0f), p * reinterpret_cast<F>(power));
  }

  LOOPSERVE_INLINE F WidenBf16(const uint16_t* at) {
    const uint32_t words[4] = {uint32_t{at[0]} << 16, uint32_t{at[1]} << 16, uint32_t{at[2]} << 16,
                               uint32_t{at[3]} << 16};
    F x;
    __builtin_memcpy(&x, words, sizeof x);
    return x;
  }

  LOOPSERVE_INLINE F WidenInt8(const std::byte* at) {
    return F{float(int8_t(at[0])), float(int8_t(at[1])), float(int8_t(at[2])),
             float(int8_t(at[3]))};
  }

  LOOPSERVE_INLINE F WidenE4m3(const std::byte* at) {
    return F{E4m3Value(at[0]), E4m3Value(at[1]), E4m3Value(at[2]), E4m3Value(at[3])};
  }

  static int TransposeKeys(const ChunkSource&, float*) { return 0; }
};

}  // namespace

const ChunkKernels& PortableChunkKernels() { return ChunkKernelsFor<Portable>::kTable; }

}  // namespace loopserve::worker::cpu_attention
