// The codec (codecs.cuh) of E4M3 matrices, which lie as cuda/kernels/fp8_layout.h says. Codes
// become bf16 exactly; the scale of a row meets its finished sums.
#pragma once

#include "worker/backend/cuda/kernels/e4m3_to_bf16.cuh"
#include "worker/backend/cuda/kernels/fp8_layout.h"
#include "worker/backend/cuda/matmul/kernels/codecs.cuh"

namespace loopserve::worker::cuda {

struct Fp8Codec : RowsCodec {
  static constexpr int kGroups = 4;
  static constexpr bool kRowScales = true;
  struct Tile {
    uint2 words[kGroups][2];
  };

  static __device__ __forceinline__ void Load(const TileRow& from, int64_t tile, int lane,
                                              Tile& to) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::byte* codes = from.data + RowAt(from, lane, h) * Fp8Pitch(from.cols);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int64_t k = (tile * kGroups + g) * kGroupCols + (lane % 4) * 8;
        to.words[g][h] = k < from.cols ? LoadStream8(codes + k) : uint2{0, 0};
      }
    }
  }

  static __device__ __forceinline__ void Operands(const Tile& tile, int g, uint32_t (&a)[2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t words[2] = {tile.words[g][h].x, tile.words[g][h].y};
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        a[m][h] = OddE4m3ToBf16(__byte_perm(words[m], 0, 0x1404));
        a[m][h + 2] = OddE4m3ToBf16(__byte_perm(words[m], 0, 0x3424));
      }
    }
  }
};

}  // namespace loopserve::worker::cuda
