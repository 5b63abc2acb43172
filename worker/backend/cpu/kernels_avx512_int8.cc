// Matrix products on AVX-512's byte dot product with activations rounded to 8 bits: per block of 32
// columns one scale and 127 steps either way, as llama.cpp has them. Sums of a block are exact.
// docs/decisions/0014-eight-bit-activations.md tells what that is good for.
#include "worker/backend/cpu/block_tiles.h"
#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/simd_avx512.h"

namespace loopserve::worker::cpu {
namespace {

struct ByteQuads {
  using F = Avx512::F;
  using I = Avx512::I;
  using Sum = I;
  static constexpr int kBits = 8;
  static constexpr int kWords = kBlockValues / 4;
  static constexpr int kSteps = 2;
  // The scale; scale times the sum of the rounded values; the sum of each half's.
  static constexpr int kRowValues = 4;

  static constexpr bool kUnpacks = false;  // codes are multiplied as they lie

  template <BlockLayout L>
  [[gnu::always_inline]] static inline void Unpack(const uint8_t* block, int g, int lane,
                                                   I (&words)[kSteps]) {
    if constexpr (L.codes == Codes::kBytes) {
      constexpr size_t kCodesAt = L.codes_at();
      constexpr size_t kGroup = size_t{kPanelOutputs} * 4;
      const uint8_t* codes = block + kCodesAt + size_t(lane) * 4 + size_t(g) * 2 * kGroup;
      words[0] = Avx512::LoadBytes(codes);
      words[1] = Avx512::LoadBytes(codes + kGroup);
    } else {
      MatMulKernels<Avx512, 1>::LoadCodes<L>(block, g, lane, words[0], words[1]);
    }
  }
  template <BlockLayout L>
  static constexpr int WordOf(int g, int i) {
    return L.codes == Codes::kBytes ? 2 * g + i : g + 4 * i;
  }
  [[gnu::always_inline]] static inline I Dot(I sum, I codes, I four) {
    return _mm512_dpbusd_epi32(sum, codes, four);
  }

  template <BlockLayout L, int TR>
  struct Row {
    template <class T>
    [[gnu::always_inline]] static inline T Value(const std::byte* tile, int i, int r) {
      return reinterpret_cast<const T*>(tile)[(kWords + i) * TR + r];
    }
    // Unsigned codes have the offset in them.
    template <int kHalf>
    [[gnu::always_inline]] static inline I Start(const std::byte* tile, int r) {
      if constexpr (L.offset == 0) return _mm512_setzero_si512();
      // Unsigned: sums of rows that are not numbers may be anything.
      const unsigned sum = L.halves ? Value<unsigned>(tile, 2 + kHalf, r)
                                    : Value<unsigned>(tile, 2, r) + Value<unsigned>(tile, 3, r);
      constexpr auto kOffset = static_cast<unsigned>(L.offset);
      return _mm512_set1_epi32(static_cast<int>(0u - kOffset * sum));
    }
    [[gnu::always_inline]] static inline F AddScaled(const std::byte* tile, int r, I sum, F scale,
                                                     F acc) {
      const F both = Avx512::Mul(scale, Avx512::Set1(Value<float>(tile, 0, r)));
      return Avx512::Fma(Avx512::FromInt(sum), both, acc);
    }
    [[gnu::always_inline]] static inline float RowSum(const std::byte* tile, int r) {
      return Value<float>(tile, 1, r);
    }
  };

  [[gnu::always_inline]] static inline void PrepareBlock(const float* x, int* values) {
    const F low = Avx512::Load(x);
    const F high = Avx512::Load(x + 16);
    const float top = Avx512::ReduceMax(Avx512::Max(Avx512::Abs(low), Avx512::Abs(high)));
    const F inverse = Avx512::Set1(top > 0 ? 127.0f / top : 0.0f);
    const I first = Avx512::Round(Avx512::Mul(low, inverse));
    const I second = Avx512::Round(Avx512::Mul(high, inverse));
    auto* bytes = reinterpret_cast<int8_t*>(values);
    Avx512::StoreInt8(bytes, first);
    Avx512::StoreInt8(bytes + 16, second);
    const int sum = Avx512::ReduceAddInt(Avx512::AddInt(first, second));
    const float scale = top / 127.0f;
    values[kWords] = __builtin_bit_cast(int, scale);
    const float scaled_sum = scale * static_cast<float>(sum);
    values[kWords + 1] = __builtin_bit_cast(int, scaled_sum);
    values[kWords + 2] = Avx512::ReduceAddInt(first);
    values[kWords + 3] = Avx512::ReduceAddInt(second);
  }
};

// The name also says which attention goes with it.
constexpr Kernels kBesideBf16 =
    WithQuantised<BlockTiles<ByteQuads>>(FloatKernels<Avx512>("avx512-bf16-int8"));
constexpr Kernels kBesideVnni =
    WithQuantised<BlockTiles<ByteQuads>>(FloatKernels<Avx512>("avx512-vnni-int8"));

}  // namespace

const Kernels& Avx512Bf16Int8Kernels() { return kBesideBf16; }
const Kernels& Avx512VnniInt8Kernels() { return kBesideVnni; }

}  // namespace loopserve::worker::cpu
