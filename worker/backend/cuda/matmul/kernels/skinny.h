// Products of few rows with large matrices, which take as long as reading the matrices does.
//
// A launch covers several matrices that share x and a device type; its thread blocks are dealt out
// over all of their outputs. The conventions of cuda/kernels/launch.h hold.
#pragma once

#include <cstdint>

#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

struct SkinnyWeight {
  const void* data = nullptr;  // as packed_weight.h or fp8_layout.h lays it out
  int64_t rows = 0;            // outputs
  void* out = nullptr;         // [x rows, rows]
  int64_t out_stride = 0;      // values
  ActivationType out_type = ActivationType::kF32;
  const float* scales = nullptr;  // [rows] of E4M3 codes; null: `data` is none
};

struct SkinnyProduct {
  static constexpr int kMaxWeights = 4;
  const void* x = nullptr;  // bf16 [x_rows, cols], rows on 16 bytes
  int64_t x_stride = 0;     // values, a multiple of 8
  int32_t x_rows = 0;
  int64_t cols = 0;  // of bf16 and E4M3 matrices: the pitch of bf16, a multiple of 8
  int32_t count = 0;
  SkinnyWeight weights[kMaxWeights];
};

// bf16 matrices and up to kMaxGemvRows rows, by fused multiply-adds in float32.
inline constexpr int kMaxGemvRows = 4;
cudaError_t LaunchGemvBf16(const SkinnyProduct& product, cudaStream_t stream);

// Matrices of any device type and up to kMaxSkinnyRows rows, on the tensor cores: codes are exact
// in bf16, each group's sum is scaled in float32.
inline constexpr int kMaxSkinnyRows = 64;
cudaError_t LaunchSkinnyMma(WeightType type, const SkinnyProduct& product, cudaStream_t stream);
// The same of E4M3 matrices.
cudaError_t LaunchSkinnyMmaFp8(const SkinnyProduct& product, cudaStream_t stream);

// How many warps of a thread block of LaunchSkinnyMma have outputs of their own: 1, or
// kSkinnyOutWarps for more than 16 rows and as many outputs as then still give every multiprocessor
// a block. What the blocks read of x in all, which L1 does not hold, is that many times less.
inline constexpr int kSkinnyOutWarps = 4;
int SkinnyOutWarps(const SkinnyProduct& product);

}  // namespace loopserve::worker::cuda
