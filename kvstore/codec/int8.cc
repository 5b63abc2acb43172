// int8: one signed byte per value and one f32 scale per vector, that is per (layer, side, head,
// token). The largest magnitude of a vector maps to 127; 8.5 bits per value at head_dim 64.
//
// Payload: for each [layer][K, V][kv_head] the scales [tokens] of f32, then the values
// [tokens][head_dim] of int8. A vector's scale is its own, so attention sinks, whose vectors are
// unlike all others, cost no other token its precision. Blocks of int8 hold the same codes and
// scales already: theirs are copied, and come back as they were.
#include <bit>
#include <cmath>
#include <cstring>

#include "common/status_macros.h"
#include "kvstore/codec/codec.h"
#include "kvstore/codec/vectors.h"
#include "kvstore/int8_vector.h"

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

// Between the vectors of a head as a block holds them and those of its payload.
class Head {
 public:
  Head(const KvShape& shape, int32_t tokens)
      : shape_(shape),
        tokens_(static_cast<size_t>(tokens)),
        dim_(static_cast<size_t>(shape.head_dim)),
        halves_(dim_),
        floats_(dim_) {}

  size_t payload_bytes() const { return tokens_ * (sizeof(float) + dim_); }

  absl::Status Encode(const std::byte* head, std::byte* payload) {
    std::byte* codes = payload + tokens_ * sizeof(float);
    for (size_t t = 0; t < tokens_; ++t, codes += dim_) {
      const float scale = EncodeVector(head, t, codes);
      if (!std::isfinite(scale)) {
        return absl::InvalidArgumentError("the block holds values that are not finite");
      }
      std::memcpy(payload + t * sizeof(float), &scale, sizeof scale);
    }
    return absl::OkStatus();
  }

  absl::Status Decode(const std::byte* payload, std::byte* head) {
    const std::byte* codes = payload + tokens_ * sizeof(float);
    for (size_t t = 0; t < tokens_; ++t, codes += dim_) {
      float scale = 0;
      std::memcpy(&scale, payload + t * sizeof(float), sizeof scale);
      if (!std::isfinite(scale) || scale < 0) return absl::DataLossError("a scale is no scale");
      DecodeVector(codes, scale, t, head);
    }
    return absl::OkStatus();
  }

 private:
  // Returns the scale.
  float EncodeVector(const std::byte* head, size_t slot, std::byte* codes) {
    const std::byte* at = head + shape_.vector_offset(slot);
    float scale = 0;
    if (shape_.dtype == KvDtype::kInt8) {
      std::memcpy(codes, at, dim_);
      std::memcpy(&scale, head + shape_.scale_offset(slot), sizeof scale);
      return scale;
    }
    std::memcpy(halves_.data(), at, shape_.vector_bytes());
    for (size_t i = 0; i < dim_; ++i) floats_[i] = FromBf16(halves_[i]);
    scale = Int8ScaleOf(floats_.data(), dim_);
    Int8Encode(floats_.data(), dim_, scale, reinterpret_cast<int8_t*>(codes));
    return scale;
  }

  void DecodeVector(const std::byte* codes, float scale, size_t slot, std::byte* head) {
    std::byte* at = head + shape_.vector_offset(slot);
    if (shape_.dtype == KvDtype::kInt8) {
      std::memcpy(at, codes, dim_);
      std::memcpy(head + shape_.scale_offset(slot), &scale, sizeof scale);
      return;
    }
    Int8Decode(reinterpret_cast<const int8_t*>(codes), dim_, scale, floats_.data());
    for (size_t i = 0; i < dim_; ++i) halves_[i] = ToBf16(floats_[i]);
    std::memcpy(at, halves_.data(), shape_.vector_bytes());
  }

  const KvShape& shape_;
  const size_t tokens_;
  const size_t dim_;
  std::vector<uint16_t> halves_;
  std::vector<float> floats_;
};

class Int8Codec final : public Codec {
 public:
  absl::string_view name() const override { return "int8"; }
  uint16_t wire_id() const override { return 2; }
  std::span<const Plane> planes() const override { return kPlanes; }
  bool Stores(KvDtype dtype) const override {
    return dtype == KvDtype::kBf16 || dtype == KvDtype::kInt8;
  }
  size_t MaxEncodedBytes(const KvShape& shape, size_t) const override {
    return HeadsOf(shape) * Head(shape, shape.block_tokens).payload_bytes();
  }

  absl::Status Encode(
      const KvShape& shape, int32_t tokens, ByteSpan block,
      const std::function<absl::Status(size_t plane, ByteSpan payload)>& out) const override {
    RETURN_IF_ERROR(CheckCodecArguments(*this, shape, tokens, block.size()));
    Head head(shape, tokens);
    std::vector<std::byte> payload(HeadsOf(shape) * head.payload_bytes());
    for (size_t h = 0; h < HeadsOf(shape); ++h) {
      RETURN_IF_ERROR(head.Encode(block.data() + h * shape.head_bytes(),
                                  payload.data() + h * head.payload_bytes()));
    }
    return out(0, payload);
  }

  absl::Status Decode(const KvShape& shape, int32_t tokens, std::span<const ByteSpan> planes,
                      MutableByteSpan block) const override {
    RETURN_IF_ERROR(CheckCodecArguments(*this, shape, tokens, block.size()));
    Head head(shape, tokens);
    RETURN_IF_ERROR(CheckOnlyPlane(planes, HeadsOf(shape) * head.payload_bytes()));
    for (size_t h = 0; h < HeadsOf(shape); ++h) {
      RETURN_IF_ERROR(head.Decode(planes[0].data() + h * head.payload_bytes(),
                                  block.data() + h * shape.head_bytes()));
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
