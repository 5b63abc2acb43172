#include "kvstore/codec/scaled_codec.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "common/status_macros.h"
#include "kvstore/codec/vectors.h"
#include "kvstore/scaled_vector.h"

namespace loopserve::kvstore {
namespace {

// At head_dim 64, the share of a scale included.
constexpr double kBitsPerValue = 8.5;
constexpr double kBf16Rounding = 1.0 / 256;
constexpr double kFloatRounding = 1e-5;

float FromBf16(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Between the vectors of a head as a block holds them and those of its payload.
class Head {
 public:
  Head(KvDtype codes, const KvShape& shape, int32_t tokens)
      : codes_(codes),
        shape_(shape),
        tokens_(static_cast<size_t>(tokens)),
        dim_(static_cast<size_t>(shape.head_dim)),
        halves_(dim_),
        floats_(dim_) {}

  size_t payload_bytes() const { return tokens_ * (sizeof(float) + dim_); }

  absl::Status Encode(const std::byte* head, std::byte* payload) {
    std::byte* codes = payload + tokens_ * sizeof(float);
    for (size_t t = 0; t < tokens_; ++t, codes += dim_) {
      const float scale = EncodeSlot(head, t, codes);
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
      if (!AreNumbers(codes_, codes, dim_)) return absl::DataLossError("a code is no number");
      DecodeSlot(codes, scale, t, head);
    }
    return absl::OkStatus();
  }

 private:
  // Returns the scale.
  float EncodeSlot(const std::byte* head, size_t slot, std::byte* codes) {
    const std::byte* at = head + shape_.vector_offset(slot);
    if (shape_.dtype == codes_) {
      float scale = 0;
      std::memcpy(codes, at, dim_);
      std::memcpy(&scale, head + shape_.scale_offset(slot), sizeof scale);
      return scale;
    }
    std::memcpy(halves_.data(), at, shape_.vector_bytes());
    for (size_t i = 0; i < dim_; ++i) floats_[i] = FromBf16(halves_[i]);
    return EncodeVector(codes_, floats_.data(), dim_, codes);
  }

  void DecodeSlot(const std::byte* codes, float scale, size_t slot, std::byte* head) {
    std::byte* at = head + shape_.vector_offset(slot);
    if (shape_.dtype == codes_) {
      std::memcpy(at, codes, dim_);
      std::memcpy(head + shape_.scale_offset(slot), &scale, sizeof scale);
      return;
    }
    DecodeVector(codes_, codes, dim_, scale, floats_.data());
    for (size_t i = 0; i < dim_; ++i) halves_[i] = ToBf16(floats_[i]);
    std::memcpy(at, halves_.data(), shape_.vector_bytes());
  }

  const KvDtype codes_;
  const KvShape& shape_;
  const size_t tokens_;
  const size_t dim_;
  std::vector<uint16_t> halves_;
  std::vector<float> floats_;
};

}  // namespace

ScaledCodec::ScaledCodec(KvDtype codes, uint16_t wire_id, double half_step)
    : codes_(codes),
      wire_id_(wire_id),
      plane_{.bits_per_value = kBitsPerValue,
             .max_relative_error = half_step + kBf16Rounding + kFloatRounding} {}

size_t ScaledCodec::MaxEncodedBytes(const KvShape& shape, size_t) const {
  return HeadsOf(shape) * Head(codes_, shape, shape.block_tokens).payload_bytes();
}

absl::Status ScaledCodec::Encode(
    const KvShape& shape, int32_t tokens, ByteSpan block,
    const std::function<absl::Status(size_t plane, ByteSpan payload)>& out) const {
  RETURN_IF_ERROR(CheckCodecArguments(*this, shape, tokens, block.size()));
  Head head(codes_, shape, tokens);
  std::vector<std::byte> payload(HeadsOf(shape) * head.payload_bytes());
  for (size_t h = 0; h < HeadsOf(shape); ++h) {
    RETURN_IF_ERROR(head.Encode(block.data() + h * shape.head_bytes(),
                                payload.data() + h * head.payload_bytes()));
  }
  return out(0, payload);
}

absl::Status ScaledCodec::Decode(const KvShape& shape, int32_t tokens,
                                 std::span<const ByteSpan> planes, MutableByteSpan block) const {
  RETURN_IF_ERROR(CheckCodecArguments(*this, shape, tokens, block.size()));
  Head head(codes_, shape, tokens);
  RETURN_IF_ERROR(CheckOnlyPlane(planes, HeadsOf(shape) * head.payload_bytes()));
  for (size_t h = 0; h < HeadsOf(shape); ++h) {
    RETURN_IF_ERROR(head.Decode(planes[0].data() + h * head.payload_bytes(),
                                block.data() + h * shape.head_bytes()));
  }
  return absl::OkStatus();
}

}  // namespace loopserve::kvstore
