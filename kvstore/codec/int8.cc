// int8: one signed byte per value and one f32 scale per vector, that is per (layer, side, head,
// token). The largest magnitude of a vector maps to 127; 8.5 bits per value at head_dim 64.
//
// Payload: for each [layer][K, V][kv_head] the scales [tokens] of f32, then the values
// [tokens][head_dim] of int8. A vector's scale is its own, so attention sinks, whose vectors are
// unlike all others, cost no other token its precision.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "common/status_macros.h"
#include "kvstore/codec/codec.h"
#include "kvstore/codec/vectors.h"

namespace loopserve::kvstore {
namespace {

// Half a step of 1/127, and the rounding of the decoded value to bf16.
constexpr Plane kPlanes[] = {
    {.bits_per_value = 8.5, .max_relative_error = 0.5 / 127 + 1.0 / 256 + 1e-5}};

float FromBf16(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The scale of a vector; infinite or NaN when a value is. Magnitudes of floats order like their
// bits do.
float ScaleOf(const uint16_t* values, size_t count) {
  uint16_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    largest = std::max(largest, static_cast<uint16_t>(values[i] & 0x7fffu));
  }
  const float scale = FromBf16(largest) / 127.0f;
  return scale < 1e-35f ? 0.0f : scale;  // what has no finite inverse is stored as zeros
}

void EncodeVector(const uint16_t* values, size_t count, float scale, int8_t* out) {
  // Adding 1.5 * 2^23 leaves the rounded integer in the mantissa's low bits: rounds to nearest
  // even without a call, so that the loop is vectorised.
  constexpr float kRound = 12582912.0f;
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (size_t i = 0; i < count; ++i) {
    const float scaled = std::clamp(FromBf16(values[i]) * inverse, -127.0f, 127.0f);
    out[i] = static_cast<int8_t>(std::bit_cast<int32_t>(scaled + kRound));
  }
}

void DecodeVector(const int8_t* values, size_t count, float scale, uint16_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = ToBf16(static_cast<float>(values[i]) * scale);
}

// Bytes of one head: `tokens` scales and vectors.
size_t HeadPayload(const KvShape& shape, int32_t tokens) {
  return static_cast<size_t>(tokens) * (sizeof(float) + static_cast<size_t>(shape.head_dim));
}

class Int8Codec final : public Codec {
 public:
  absl::string_view name() const override { return "int8"; }
  uint16_t wire_id() const override { return 2; }
  std::span<const Plane> planes() const override { return kPlanes; }
  size_t MaxEncodedBytes(const KvShape& shape, size_t) const override {
    return HeadsOf(shape) * HeadPayload(shape, shape.block_tokens);
  }

  absl::Status Encode(
      const KvShape& shape, int32_t tokens, ByteSpan block,
      const std::function<absl::Status(size_t plane, ByteSpan payload)>& out) const override {
    RETURN_IF_ERROR(CheckCodecArguments(shape, tokens, block.size()));
    const auto dim = static_cast<size_t>(shape.head_dim);
    std::vector<std::byte> payload(HeadsOf(shape) * HeadPayload(shape, tokens));
    std::vector<uint16_t> vector(dim);
    for (size_t head = 0; head < HeadsOf(shape); ++head) {
      std::byte* scales = payload.data() + head * HeadPayload(shape, tokens);
      auto* values = reinterpret_cast<int8_t*>(scales + static_cast<size_t>(tokens) * 4);
      for (size_t t = 0; t < static_cast<size_t>(tokens); ++t) {
        std::memcpy(vector.data(), block.data() + head * shape.head_bytes() + t * dim * 2, dim * 2);
        const float scale = ScaleOf(vector.data(), dim);
        if (!std::isfinite(scale)) {
          return absl::InvalidArgumentError("the block holds values that are not finite");
        }
        std::memcpy(scales + t * 4, &scale, 4);
        EncodeVector(vector.data(), dim, scale, values + t * dim);
      }
    }
    return out(0, payload);
  }

  absl::Status Decode(const KvShape& shape, int32_t tokens, std::span<const ByteSpan> planes,
                      MutableByteSpan block) const override {
    RETURN_IF_ERROR(CheckCodecArguments(shape, tokens, block.size()));
    const auto dim = static_cast<size_t>(shape.head_dim);
    RETURN_IF_ERROR(CheckOnlyPlane(planes, HeadsOf(shape) * HeadPayload(shape, tokens)));
    std::vector<uint16_t> vector(dim);
    for (size_t head = 0; head < HeadsOf(shape); ++head) {
      const std::byte* scales = planes[0].data() + head * HeadPayload(shape, tokens);
      const auto* values =
          reinterpret_cast<const int8_t*>(scales + static_cast<size_t>(tokens) * 4);
      for (size_t t = 0; t < static_cast<size_t>(tokens); ++t) {
        float scale = 0;
        std::memcpy(&scale, scales + t * 4, 4);
        if (!std::isfinite(scale) || scale < 0) return absl::DataLossError("a scale is no scale");
        DecodeVector(values + t * dim, dim, scale, vector.data());
        std::memcpy(block.data() + head * shape.head_bytes() + t * dim * 2, vector.data(), dim * 2);
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace

const Codec& codec_int8() {
  static const Int8Codec kCodec;
  return kCodec;
}

}  // namespace loopserve::kvstore
