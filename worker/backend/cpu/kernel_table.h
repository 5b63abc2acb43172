// The table of one instruction set, from its class of vectors.
#pragma once

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/math_kernels.h"
#include "worker/backend/cpu/matmul_kernels.h"

namespace loopserve::worker::cpu {

// Beside an unpacked panel, in a second-level cache of a mebibyte.
inline constexpr size_t kPartBytes = size_t{400} << 10;

template <class S, int kPlanes = 2>
constexpr Kernels MakeKernels(const char* name) {
  using M = MatMulKernels<S, kPlanes>;
  using E = MathKernels<S>;
  return {
      .name = name,
      // In the order of WeightType.
      .matmul = {M::template Float<WeightFloat::kF32>, M::template Float<WeightFloat::kF16>,
                 M::template Float<WeightFloat::kBF16>, M::template Quant<kLayoutQ4_0>,
                 M::template Quant<kLayoutQ4_1>, M::template Quant<kLayoutQ5_0>,
                 M::template Quant<kLayoutQ5_1>, M::template Quant<kLayoutQ8_0>,
                 M::template Quant<kLayoutQ4_K>, M::template Quant<kLayoutQ6_K>},
      .activation_bits = 8 * kPlanes,
      .tile_rows = M::TileRows,
      .part_bytes = kPartBytes,
      .part_tiles = 1 << 20,
      .prepare = M::Prepare,
      .tile_bytes = M::TileBytes,
      .workspace_bytes = M::NoWorkspace,
      .to_bf16 = E::ToBf16,
      .rms_norm = E::RmsNorm,
      .add = E::Add,
      .silu_mul = E::SiluMul,
      .rope = E::Rope,
  };
}

}  // namespace loopserve::worker::cpu
