// bf16: the block as it is. One plane, exact: [layers][K, V][kv_heads][tokens][head_dim] of bf16.
#include <cstring>

#include "common/status_macros.h"
#include "kvstore/codec/codec.h"
#include "kvstore/codec/vectors.h"

namespace loopserve::kvstore {
namespace {

constexpr Plane kPlanes[] = {{.bits_per_value = 16, .max_relative_error = 0}};

class Bf16Codec final : public Codec {
 public:
  absl::string_view name() const override { return "bf16"; }
  uint16_t wire_id() const override { return 1; }
  std::span<const Plane> planes() const override { return kPlanes; }
  bool Stores(KvDtype dtype) const override { return dtype == KvDtype::kBf16; }
  size_t MaxEncodedBytes(const KvShape& shape, size_t) const override {
    return shape.block_bytes();
  }

  bool IsBlockItself(const KvShape& shape, int32_t tokens) const override {
    return Stores(shape.dtype) && tokens == shape.block_tokens;
  }

  absl::Status Encode(
      const KvShape& shape, int32_t tokens, ByteSpan block,
      const std::function<absl::Status(size_t plane, ByteSpan payload)>& out) const override {
    RETURN_IF_ERROR(CheckCodecArguments(*this, shape, tokens, block.size()));
    if (tokens == shape.block_tokens) return out(0, block);
    const size_t row = shape.vector_offset(static_cast<size_t>(tokens));
    std::vector<std::byte> packed(HeadsOf(shape) * row);
    for (size_t head = 0; head < HeadsOf(shape); ++head) {
      std::memcpy(packed.data() + head * row, block.data() + head * shape.head_bytes(), row);
    }
    return out(0, packed);
  }

  absl::Status Decode(const KvShape& shape, int32_t tokens, std::span<const ByteSpan> planes,
                      MutableByteSpan block) const override {
    RETURN_IF_ERROR(CheckCodecArguments(*this, shape, tokens, block.size()));
    const size_t row = shape.vector_offset(static_cast<size_t>(tokens));
    RETURN_IF_ERROR(CheckOnlyPlane(planes, HeadsOf(shape) * row));
    for (size_t head = 0; head < HeadsOf(shape); ++head) {
      std::memcpy(block.data() + head * shape.head_bytes(), planes[0].data() + head * row, row);
    }
    return absl::OkStatus();
  }
};

}  // namespace

const Codec& codec_bf16() {
  static const Bf16Codec kCodec;
  return kCodec;
}

}  // namespace loopserve::kvstore
