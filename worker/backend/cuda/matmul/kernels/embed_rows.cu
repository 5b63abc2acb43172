#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "worker/backend/cuda/matmul/kernels/embed_rows.h"
#include "worker/backend/cuda/matmul/packed_layout.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ uint32_t Bits(const std::byte* record, BitPlace place, int count) {
  const uint32_t word = reinterpret_cast<const uint32_t*>(record)[place.word];
  return (word >> place.shift) & ((1U << count) - 1);
}

__device__ __forceinline__ float HalfAt(const std::byte* at) {
  return __half2float(*reinterpret_cast<const __half*>(at));
}

// As UnpackRow of packed_weight.cc.
template <WeightType kType>
__device__ __forceinline__ float Value(const std::byte* record, int row, int col) {
  constexpr RecordLayout layout = LayoutOf(kType);
  const ValuePlace place = PlaceOf(row, col);
  uint32_t code = Bits(record, LowBitsOf(layout, place), layout.low_bits);
  if constexpr (layout.high_bits != 0) {
    code |= Bits(record, HighBitsOf(layout, place), layout.high_bits) << layout.low_bits;
  }
  const std::byte* scale = record + ScaleAt(layout, row, place.group);
  const std::byte* super = record + SuperAt(layout, row);
  const float centred = static_cast<float>(static_cast<int>(code) - layout.centre);
  if constexpr (kType == WeightType::kQ8_0) {
    return HalfAt(scale) * static_cast<float>(static_cast<int8_t>(code));
  } else if constexpr (kType == WeightType::kQ4_K) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(scale);
    return HalfAt(super) * static_cast<float>(bytes[0]) * centred -
           HalfAt(super + 2) * static_cast<float>(bytes[1]);
  } else if constexpr (kType == WeightType::kQ6_K) {
    const auto* bytes = reinterpret_cast<const int8_t*>(scale);
    return HalfAt(super) * static_cast<float>(bytes[place.j / 4]) * centred;
  } else if constexpr (layout.scale_bytes == 4) {
    return HalfAt(scale) * centred + HalfAt(scale + 2);
  } else {
    return HalfAt(scale) * centred;
  }
}

template <WeightType kType>
__device__ __forceinline__ float TableValue(const DeviceWeight& table, int64_t row, int64_t col) {
  if constexpr (kType == WeightType::kBF16) {
    const auto* values = reinterpret_cast<const __nv_bfloat16*>(table.data);
    return __bfloat162float(values[row * Bf16Pitch(table.cols) + col]);
  } else {
    const int64_t tile = row / kTileRows * TilesOf(table.cols, kTileCols) + col / kTileCols;
    return Value<kType>(table.data + tile * LayoutOf(kType).bytes(),
                        static_cast<int>(row % kTileRows), static_cast<int>(col % kTileCols));
  }
}

// One thread block per row of the output and run of kThreads columns.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads)
    EmbedRows(DeviceWeight table, const int32_t* __restrict__ tokens, int32_t first,
              TensorView out) {
  const int64_t t = blockIdx.x;
  const int64_t col = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (col >= out.cols) return;
  const int64_t row = static_cast<int64_t>(tokens[t]) - first;
  const bool inside = row >= 0 && row < table.rows;
  const float value = inside ? TableValue<kType>(table, row, col) : 0.0f;
  const int64_t at = t * out.stride + col;
  if (out.type == ActivationType::kF32) {
    out.data[at] = value;
  } else {
    reinterpret_cast<__nv_bfloat16*>(out.data)[at] = __float2bfloat16_rn(value);
  }
}

template <WeightType kType>
cudaError_t Launch(const DeviceWeight& table, const int32_t* tokens, int32_t first, TensorView out,
                   cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(out.rows),
                    static_cast<unsigned>(TilesOf(out.cols, kThreads)));
  EmbedRows<kType><<<blocks, kThreads, 0, stream>>>(table, tokens, first, out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchEmbedRows(const DeviceWeight& table, const int32_t* tokens, int32_t first,
                            TensorView out, cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  if (table.fp8() || out.cols != table.cols) return cudaErrorInvalidValue;
  switch (table.type) {
    case WeightType::kBF16:
      return Launch<WeightType::kBF16>(table, tokens, first, out, stream);
    case WeightType::kQ4_0:
      return Launch<WeightType::kQ4_0>(table, tokens, first, out, stream);
    case WeightType::kQ4_1:
      return Launch<WeightType::kQ4_1>(table, tokens, first, out, stream);
    case WeightType::kQ5_0:
      return Launch<WeightType::kQ5_0>(table, tokens, first, out, stream);
    case WeightType::kQ5_1:
      return Launch<WeightType::kQ5_1>(table, tokens, first, out, stream);
    case WeightType::kQ8_0:
      return Launch<WeightType::kQ8_0>(table, tokens, first, out, stream);
    case WeightType::kQ4_K:
      return Launch<WeightType::kQ4_K>(table, tokens, first, out, stream);
    case WeightType::kQ6_K:
      return Launch<WeightType::kQ6_K>(table, tokens, first, out, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace loopserve::worker::cuda
