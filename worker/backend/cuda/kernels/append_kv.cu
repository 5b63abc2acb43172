#include "worker/backend/cuda/kernels/append_kv.h"

#include <cuda_bf16.h>

#include <cstring>

#include "common/e4m3.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct Source {
  const void* data;
  int64_t stride;
  ActivationType type;
};

struct Append {
  Source side[2];  // keys, values
  DeviceSequences sequences;
  std::byte* base[2];  // of the layer's first head in block 0
  size_t block_bytes;
  size_t head_bytes;
  int kv_heads;
  int head_dim;
  int block_tokens;
};

struct Slot {
  size_t block_offset;  // bytes; of the block
  int slot;
  bool valid;
};

__device__ Slot SlotOfRow(const Append& a, int row) {
  const int s = a.sequences.row_sequence[row];
  if (s < 0 || s >= a.sequences.count) return {0, 0, false};
  const int position =
      a.sequences.kv_tokens[s] - a.sequences.num_rows[s] + row - a.sequences.first_row[s];
  const uint32_t block = a.sequences.blocks[a.sequences.first_block[s] + position / a.block_tokens];
  return {size_t(block) * a.block_bytes, position % a.block_tokens, true};
}

__device__ float Load(const Source& from, int64_t index) {
  if (from.type == ActivationType::kF32) return static_cast<const float*>(from.data)[index];
  return __bfloat162float(static_cast<const __nv_bfloat16*>(from.data)[index]);
}

// Eight values at a time, which lie aligned in the source.
__device__ void LoadEight(const Source& from, int64_t index, float* values) {
  if (from.type == ActivationType::kF32) {
    const auto* data =
        reinterpret_cast<const float4*>(static_cast<const float*>(from.data) + index);
    const float4 a = data[0];
    const float4 b = data[1];
    const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = all[i];
    return;
  }
  const uint4 raw =
      *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(from.data) + index);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ uint32_t PackBf16(float low, float high) {
  return uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(low))) |
         uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// One thread per eight values of a row's keys or values; head_dim is a multiple of 8 and
// everything is aligned to 16 bytes.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads) AppendChunks(Append a) {
  const int chunks = a.kv_heads * a.head_dim / 8;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t side_row = index / chunks;
  if (side_row >= int64_t(a.sequences.rows) * 2) return;
  const int row = int(side_row >> 1);
  const int side = int(side_row & 1);
  const int col = int(index - side_row * chunks) * 8;
  const Slot slot = SlotOfRow(a, row);
  if (!slot.valid) return;
  const Source from = side == 0 ? a.side[0] : a.side[1];
  float values[8];
  LoadEight(from, row * from.stride + col, values);
  const int head = col / a.head_dim;
  std::byte* to = (side == 0 ? a.base[0] : a.base[1]) + slot.block_offset + head * a.head_bytes +
                  (size_t(slot.slot) * a.head_dim + col % a.head_dim) * (kBf16 ? 2 : 4);
  if constexpr (kBf16) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(PackBf16(values[0], values[1]), PackBf16(values[2], values[3]),
                   PackBf16(values[4], values[5]), PackBf16(values[6], values[7]));
  } else {
    auto* out = reinterpret_cast<float4*>(to);
    out[0] = make_float4(values[0], values[1], values[2], values[3]);
    out[1] = make_float4(values[4], values[5], values[6], values[7]);
  }
}

// As kvstore/scaled_vector.cc: the same operations in the same order, none of them fused.
template <kvstore::KvDtype kDtype>
__device__ float ScaleOfVector(const Source& from, int64_t first, int head_dim, int lane) {
  constexpr float kLargest = kDtype == kvstore::KvDtype::kInt8 ? 127.0f : common::kLargestE4m3;
  uint32_t largest = 0;
  for (int i = lane; i < head_dim; i += 32) {
    largest = max(largest, __float_as_uint(Load(from, first + i)) & 0x7fffffffu);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  }
  const float scale = __fdiv_rn(__uint_as_float(largest), kLargest);
  return scale < 1e-35f ? 0.0f : scale;
}

template <kvstore::KvDtype kDtype>
__device__ std::byte CodeOf(float number) {
  if constexpr (kDtype == kvstore::KvDtype::kInt8) {
    return std::byte(__float2int_rn(fminf(fmaxf(number, -127.0f), 127.0f)));
  } else {
    return std::byte{common::FloatToE4m3(number)};
  }
}

template <kvstore::KvDtype kDtype>
__device__ void StoreCodes(const Source& from, int64_t first, int head_dim, int lane,
                           std::byte* vector, std::byte* scale_at) {
  const float scale = ScaleOfVector<kDtype>(from, first, head_dim, lane);
  const bool finite = (__float_as_uint(scale) & 0x7f800000u) != 0x7f800000u;
  const float inverse = finite && scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
  for (int i = lane; i < head_dim; i += 32) {
    const float number = __fmul_rn(Load(from, first + i), inverse);
    vector[i] = finite ? CodeOf<kDtype>(number) : std::byte{0};
  }
  if (lane < 4) scale_at[lane] = std::byte(__float_as_uint(scale) >> (8 * lane));
}

// One warp per vector, whatever its size and alignment.
template <kvstore::KvDtype kDtype>
__global__ void __launch_bounds__(kThreads) AppendVectors(Append a) {
  const int lane = threadIdx.x % 32;
  const int64_t index = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t side_row = index / a.kv_heads;
  if (side_row >= int64_t(a.sequences.rows) * 2) return;
  const int row = int(side_row >> 1);
  const int side = int(side_row & 1);
  const int head = int(index - side_row * a.kv_heads);
  const Slot slot = SlotOfRow(a, row);
  if (!slot.valid) return;
  const Source from = side == 0 ? a.side[0] : a.side[1];
  const int64_t first = row * from.stride + int64_t(head) * a.head_dim;
  std::byte* head_at =
      (side == 0 ? a.base[0] : a.base[1]) + slot.block_offset + head * a.head_bytes;
  if constexpr (kvstore::HasScales(kDtype)) {
    StoreCodes<kDtype>(from, first, a.head_dim, lane, head_at + size_t(slot.slot) * a.head_dim,
                       head_at + size_t(a.block_tokens) * a.head_dim + size_t(slot.slot) * 4);
  } else {
    for (int i = lane; i < a.head_dim; i += 32) {
      const float value = Load(from, first + i);
      const size_t at = size_t(slot.slot) * a.head_dim + i;
      if constexpr (kDtype == kvstore::KvDtype::kBf16) {
        reinterpret_cast<__nv_bfloat16*>(head_at)[at] = __float2bfloat16_rn(value);
      } else {
        reinterpret_cast<float*>(head_at)[at] = value;
      }
    }
  }
}

bool Aligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.stride % 8 == 0;
}

void LaunchVectors(const Append& a, kvstore::KvDtype dtype, cudaStream_t stream) {
  const int64_t vectors = int64_t(a.sequences.rows) * 2 * a.kv_heads;
  const auto grid = static_cast<unsigned>((vectors + kWarps - 1) / kWarps);
  switch (dtype) {
    case kvstore::KvDtype::kBf16:
      AppendVectors<kvstore::KvDtype::kBf16><<<grid, kThreads, 0, stream>>>(a);
      break;
    case kvstore::KvDtype::kF32:
      AppendVectors<kvstore::KvDtype::kF32><<<grid, kThreads, 0, stream>>>(a);
      break;
    case kvstore::KvDtype::kInt8:
      AppendVectors<kvstore::KvDtype::kInt8><<<grid, kThreads, 0, stream>>>(a);
      break;
    case kvstore::KvDtype::kFp8:
      AppendVectors<kvstore::KvDtype::kFp8><<<grid, kThreads, 0, stream>>>(a);
      break;
  }
}

void LaunchChunks(const Append& a, bool bf16, cudaStream_t stream) {
  const int64_t chunks = int64_t(a.sequences.rows) * 2 * a.kv_heads * a.head_dim / 8;
  const auto grid = static_cast<unsigned>((chunks + kThreads - 1) / kThreads);
  if (bf16) {
    AppendChunks<true><<<grid, kThreads, 0, stream>>>(a);
  } else {
    AppendChunks<false><<<grid, kThreads, 0, stream>>>(a);
  }
}

}  // namespace

cudaError_t LaunchAppendKv(TensorView k, TensorView v, const DeviceSequences& sequences,
                           const kvstore::KvShape& shape, std::byte* arena, int32_t layer,
                           cudaStream_t stream) {
  if (sequences.rows == 0 || sequences.count == 0) return cudaSuccess;
  Append a;
  a.side[0] = {k.data, k.stride, k.type};
  a.side[1] = {v.data, v.stride, v.type};
  a.sequences = sequences;
  a.base[0] = arena + shape.offset(layer, kvstore::KvSide::kKey, 0);
  a.base[1] = arena + shape.offset(layer, kvstore::KvSide::kValue, 0);
  a.block_bytes = shape.block_bytes();
  a.head_bytes = shape.head_bytes();
  a.kv_heads = shape.kv_heads;
  a.head_dim = shape.head_dim;
  a.block_tokens = shape.block_tokens;
  const bool aligned = Aligned(k) && Aligned(v) && shape.head_dim % 8 == 0 &&
                       reinterpret_cast<uintptr_t>(arena) % 16 == 0;
  if (aligned && !kvstore::HasScales(shape.dtype)) {
    LaunchChunks(a, shape.dtype == kvstore::KvDtype::kBf16, stream);
  } else {
    LaunchVectors(a, shape.dtype, stream);
  }
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
