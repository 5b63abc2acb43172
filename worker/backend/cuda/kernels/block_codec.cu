#include "worker/backend/cuda/kernels/block_codec.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;          // of a thread block; each takes every kWarps-th vector of a head
constexpr int kValuesPerLane = 4;  // 8 bytes of bf16, 4 of codes
constexpr int kChunk = kWarp * kValuesPerLane;
constexpr unsigned kAll = 0xffffffffu;

// What the kernels need of BlockCodecArgs, once for all blocks.
struct Layout {
  std::byte* base;
  std::byte* payloads;
  const uint32_t* blocks;
  uint32_t* damaged;
  size_t block_bytes;
  size_t head_bytes;          // of a block
  size_t payload_bytes;       // of a block
  size_t head_payload_bytes;  // of one head
  int32_t tokens;
  int32_t head_dim;
};

__device__ float FromBf16(uint16_t value) {
  return __uint_as_float(static_cast<uint32_t>(value) << 16);
}

__device__ uint16_t ToBf16(float value) {
  const uint32_t bits = __float_as_uint(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ uint32_t Magnitude(uint16_t value) {
  return (static_cast<uint32_t>(value) << 16) & 0x7fffffffu;
}

__device__ bool IsFinite(float value) {
  return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// As kvstore/int8_vector.cc: the same operations in the same order, none of them fused.
__device__ int8_t Code(uint16_t value, float inverse) {
  constexpr float kRound = 12582912.0f;
  const float scaled = __fmul_rn(FromBf16(value), inverse);
  const float clamped = fminf(fmaxf(scaled, -127.0f), 127.0f);
  return static_cast<int8_t>(__float_as_int(__fadd_rn(clamped, kRound)));
}

__device__ uint16_t Value(int8_t code, float scale) {
  return ToBf16(__fmul_rn(static_cast<float>(code), scale));
}

struct HeadPlace {
  std::byte* vectors;
  float* scales;
  int8_t* codes;
};

// blockIdx.x is the head among [layers][K, V][kv_heads], blockIdx.y the block of the list.
__device__ HeadPlace PlaceOf(const Layout& at) {
  std::byte* const payload =
      at.payloads + blockIdx.y * at.payload_bytes + blockIdx.x * at.head_payload_bytes;
  return {at.base + at.blocks[blockIdx.y] * at.block_bytes + blockIdx.x * at.head_bytes,
          reinterpret_cast<float*>(payload),
          reinterpret_cast<int8_t*>(payload + at.tokens * sizeof(float))};
}

__global__ void __launch_bounds__(kWarp* kWarps) Int8EncodeKernel(const Layout at) {
  const HeadPlace place = PlaceOf(at);
  const int lane = threadIdx.x % kWarp;
  for (int t = threadIdx.x / kWarp; t < at.tokens; t += kWarps) {
    const size_t first = static_cast<size_t>(t) * at.head_dim;
    const auto* const values = reinterpret_cast<const uint16_t*>(place.vectors) + first;
    uint32_t largest = 0;
    for (int d = lane * kValuesPerLane; d < at.head_dim; d += kChunk) {
      const ushort4 v = *reinterpret_cast<const ushort4*>(values + d);
      largest = max(max(max(largest, Magnitude(v.x)), max(Magnitude(v.y), Magnitude(v.z))),
                    Magnitude(v.w));
    }
    largest = __reduce_max_sync(kAll, largest);
    float scale = __fdiv_rn(__uint_as_float(largest), 127.0f);
    if (scale < 1e-35f) scale = 0.0f;
    const bool finite = IsFinite(scale);
    const float inverse = finite && scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
    for (int d = lane * kValuesPerLane; d < at.head_dim; d += kChunk) {
      const ushort4 v = *reinterpret_cast<const ushort4*>(values + d);
      char4 codes = make_char4(0, 0, 0, 0);
      if (finite) {
        codes = make_char4(Code(v.x, inverse), Code(v.y, inverse), Code(v.z, inverse),
                           Code(v.w, inverse));
      }
      *reinterpret_cast<char4*>(place.codes + first + d) = codes;
    }
    if (lane == 0) {
      place.scales[t] = scale;
      if (!finite) at.damaged[blockIdx.y] = 1;
    }
  }
}

__global__ void __launch_bounds__(kWarp* kWarps) Int8DecodeKernel(const Layout at) {
  const HeadPlace place = PlaceOf(at);
  const int lane = threadIdx.x % kWarp;
  for (int t = threadIdx.x / kWarp; t < at.tokens; t += kWarps) {
    const size_t first = static_cast<size_t>(t) * at.head_dim;
    auto* const values = reinterpret_cast<uint16_t*>(place.vectors) + first;
    const float scale = place.scales[t];
    if (lane == 0 && (!IsFinite(scale) || scale < 0)) at.damaged[blockIdx.y] = 1;
    for (int d = lane * kValuesPerLane; d < at.head_dim; d += kChunk) {
      const char4 codes = *reinterpret_cast<const char4*>(place.codes + first + d);
      *reinterpret_cast<ushort4*>(values + d) =
          make_ushort4(Value(codes.x, scale), Value(codes.y, scale), Value(codes.z, scale),
                       Value(codes.w, scale));
    }
  }
}

bool Fits(const BlockCodecArgs& args) {
  const kvstore::KvShape& shape = args.arena.shape;
  constexpr int32_t kMostBlocks = 65535;  // of a grid's second dimension
  return shape.dtype == kvstore::KvDtype::kBf16 && shape.head_dim > 0 &&
         shape.head_dim % kValuesPerLane == 0 && args.tokens > 0 &&
         args.tokens <= shape.block_tokens && args.count >= 0 && args.count <= kMostBlocks;
}

cudaError_t Launch(void (*kernel)(Layout), const BlockCodecArgs& args, cudaStream_t stream) {
  if (!Fits(args)) return cudaErrorInvalidValue;
  if (args.count == 0) return cudaSuccess;
  const kvstore::KvShape& shape = args.arena.shape;
  const auto heads = static_cast<uint32_t>(shape.layers * 2 * shape.kv_heads);
  const size_t payload_bytes = Int8PayloadBytes(shape, args.tokens);
  const Layout layout{args.arena.base,     args.payloads,      args.blocks,   args.damaged,
                      shape.block_bytes(), shape.head_bytes(), payload_bytes, payload_bytes / heads,
                      args.tokens,         shape.head_dim};
  const cudaError_t error =
      cudaMemsetAsync(args.damaged, 0, static_cast<size_t>(args.count) * sizeof(uint32_t), stream);
  if (error != cudaSuccess) return error;
  kernel<<<dim3(heads, static_cast<uint32_t>(args.count)), kWarp * kWarps, 0, stream>>>(layout);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchInt8EncodeBlocks(const BlockCodecArgs& args, cudaStream_t stream) {
  return Launch(Int8EncodeKernel, args, stream);
}

cudaError_t LaunchInt8DecodeBlocks(const BlockCodecArgs& args, cudaStream_t stream) {
  return Launch(Int8DecodeKernel, args, stream);
}

}  // namespace loopserve::worker::cuda
