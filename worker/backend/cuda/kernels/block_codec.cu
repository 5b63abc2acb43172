#include "worker/backend/cuda/kernels/block_codec.h"

#include <algorithm>

namespace loopserve::worker::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;          // of a thread block; each takes every kWarps-th vector of a head
constexpr int kValuesPerLane = 4;  // 8 bytes of bf16, 4 of codes
constexpr int kChunk = kWarp * kValuesPerLane;
constexpr unsigned kAll = 0xffffffffu;

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

// As kvstore/scaled_vector.cc: the same operations in the same order, none of them fused.
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

// blockIdx.x is the head among [layers][K, V][kv_heads], blockIdx.y the block of the launch.
__device__ HeadPlace PlaceOf(const Int8Launch& at, int tokens) {
  const size_t scales_bytes = static_cast<size_t>(tokens) * sizeof(float);
  const size_t head_bytes = scales_bytes + static_cast<size_t>(tokens) * at.head_dim;
  std::byte* const payload = at.payloads + blockIdx.y * at.payload_stride + blockIdx.x * head_bytes;
  return {at.blocks[blockIdx.y] + blockIdx.x * at.head_bytes, reinterpret_cast<float*>(payload),
          reinterpret_cast<int8_t*>(payload + scales_bytes)};
}

__global__ void __launch_bounds__(kWarp* kWarps)
    Int8EncodeKernel(const __grid_constant__ Int8Launch at) {
  const int tokens = at.tokens[blockIdx.y];
  const HeadPlace place = PlaceOf(at, tokens);
  const int lane = threadIdx.x % kWarp;
  for (int t = threadIdx.x / kWarp; t < tokens; t += kWarps) {
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

__global__ void __launch_bounds__(kWarp* kWarps)
    Int8DecodeKernel(const __grid_constant__ Int8Launch at) {
  const int tokens = at.tokens[blockIdx.y];
  const HeadPlace place = PlaceOf(at, tokens);
  const int lane = threadIdx.x % kWarp;
  for (int t = threadIdx.x / kWarp; t < tokens; t += kWarps) {
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
  const auto fits = [&](const Int8Block& block) {
    return block.tokens > 0 && block.tokens <= args.shape.block_tokens &&
           Int8PayloadBytes(args.shape, block.tokens) <= args.payload_stride;
  };
  return Int8Codes(args.shape) && args.payload_stride % sizeof(float) == 0 &&
         std::ranges::all_of(args.blocks, fits);
}

cudaError_t Launch(void (*kernel)(Int8Launch), const BlockCodecArgs& args, cudaStream_t stream) {
  if (!Fits(args)) return cudaErrorInvalidValue;
  const kvstore::KvShape& shape = args.shape;
  const auto heads = static_cast<uint32_t>(shape.layers * 2 * shape.kv_heads);
  for (size_t first = 0; first < args.blocks.size(); first += kInt8BlocksPerLaunch) {
    const size_t count = std::min(kInt8BlocksPerLaunch, args.blocks.size() - first);
    Int8Launch launch{.payloads = args.payloads + first * args.payload_stride,
                      .payload_stride = args.payload_stride,
                      .damaged = args.damaged + first,
                      .head_bytes = shape.head_bytes(),
                      .head_dim = shape.head_dim};
    for (size_t i = 0; i < count; ++i) {
      launch.blocks[i] = args.blocks[first + i].block;
      launch.tokens[i] = args.blocks[first + i].tokens;
    }
    kernel<<<dim3(heads, static_cast<uint32_t>(count)), kWarp * kWarps, 0, stream>>>(launch);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t LaunchInt8EncodeBlocks(const BlockCodecArgs& args, cudaStream_t stream) {
  return Launch(Int8EncodeKernel, args, stream);
}

cudaError_t LaunchInt8DecodeBlocks(const BlockCodecArgs& args, cudaStream_t stream) {
  return Launch(Int8DecodeKernel, args, stream);
}

}  // namespace loopserve::worker::cuda
