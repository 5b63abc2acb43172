// The table of one instruction set, from its class of vectors.
#pragma once

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/math_kernels.h"
#include "worker/backend/cpu/matmul_kernels.h"

namespace loopserve::worker::cpu {

// Beside an unpacked panel, in a second-level cache of a mebibyte.
inline constexpr size_t kPartBytes = size_t{400} << 10;

// All but products with quantised weights.
template <class S>
constexpr Kernels FloatKernels(const char* name) {
  using M = MatMulKernels<S, 2>;  // planes play no part
  using E = MathKernels<S>;
  return {
      .name = name,
      .matmul = {M::template Float<WeightFloat::kF32>, M::template Float<WeightFloat::kF16>,
                 M::template Float<WeightFloat::kBF16>},
      .part_bytes = kPartBytes,
      .part_tiles = 1 << 20,
      .to_bf16 = E::ToBf16,
      .rms_norm = E::RmsNorm,
      .add = E::Add,
      .silu_mul = E::SiluMul,
      .rope = E::Rope,
  };
}

// The table with M's products for quantised weights.
template <class M>
constexpr Kernels WithQuantised(Kernels kernels) {
  // In the order of WeightType.
  constexpr Kernels::MatMul kProducts[] = {
      M::template Quant<kLayoutQ4_0>, M::template Quant<kLayoutQ4_1>,
      M::template Quant<kLayoutQ5_0>, M::template Quant<kLayoutQ5_1>,
      M::template Quant<kLayoutQ8_0>, M::template Quant<kLayoutQ4_K>,
      M::template Quant<kLayoutQ6_K>};
  for (int i = kFloatTypes; i < kWeightTypes; ++i) kernels.matmul[i] = kProducts[i - kFloatTypes];
  kernels.activation_bits = M::kActivationBits;
  kernels.tile_rows = M::TileRows;
  kernels.prepare = M::Prepare;
  kernels.tile_bytes = M::TileBytes;
  kernels.workspace_bytes = M::WorkspaceBytes;
  return kernels;
}

// Rows in planes of 8 bits: two, or one.
template <class S, int kPlanes = 2>
constexpr Kernels MakeKernels(const char* name) {
  return WithQuantised<MatMulKernels<S, kPlanes>>(FloatKernels<S>(name));
}

}  // namespace loopserve::worker::cpu
