// Matrix products on AVX-512's bfloat16 dot product: activations are rounded to bf16, the codes of
// every quantised format are small integers and so are bf16 without rounding, sums are float32.
#include "worker/backend/cpu/bf16_pairs.h"
#include "worker/backend/cpu/block_tiles.h"
#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/simd_avx512.h"

namespace loopserve::worker::cpu {
namespace {

struct Bf16Pairs {
  using Sum = F;
  static constexpr int kBits = 16;
  static constexpr int kWords = kPairs;
  static constexpr int kSteps = 4;
  static constexpr int kRowValues = 1;  // the sum of the rounded values

  static constexpr bool kUnpacks = true;

  template <BlockLayout L>
  [[gnu::always_inline]] static inline void Unpack(const uint8_t* block, int g, int lane,
                                                   I (&words)[kSteps]) {
    Unpacker<L>::Four(block, g, lane, words);
  }
  template <BlockLayout L>
  static constexpr int WordOf(int g, int i) {
    return Unpacker<L>::PairOf(g, i);
  }
  [[gnu::always_inline]] static inline F Dot(F sum, I codes, I pair) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(codes),
                            reinterpret_cast<__m512bh>(pair));
  }

  template <BlockLayout L, int TR>
  struct Row {
    template <int kHalf>
    [[gnu::always_inline]] static inline F Start(const std::byte*, int) {
      return _mm512_setzero_ps();
    }
    [[gnu::always_inline]] static inline F AddScaled(const std::byte*, int, F sum, F scale, F acc) {
      return Avx512::Fma(sum, scale, acc);
    }
    [[gnu::always_inline]] static inline float RowSum(const std::byte* tile, int r) {
      return reinterpret_cast<const float*>(tile)[kWords * TR + r];
    }
  };

  [[gnu::always_inline]] static inline void PrepareBlock(const float* x, int* values) {
    float sum;
    _mm512_store_si512(values, RoundBlock(x, sum));
    values[kPairs] = __builtin_bit_cast(int, sum);
  }
};

constexpr Kernels kKernels =
    WithQuantised<BlockTiles<Bf16Pairs>>(FloatKernels<Avx512>("avx512-bf16"));

}  // namespace

const Kernels& Avx512Bf16Kernels() { return kKernels; }

}  // namespace loopserve::worker::cpu
