// A codec of one plane: a byte per value and one f32 scale per vector, that is per (layer, side,
// head, token), as scaled_vector.h quantises them.
//
// Payload: for each [layer][K, V][kv_head] the scales [tokens] of f32, then the codes
// [tokens][head_dim]. A vector's scale is its own, so attention sinks, whose vectors are unlike all
// others, cost no other token its precision. Blocks of the codec's own dtype hold the same codes
// and scales already: theirs are copied, and come back as they were. Blocks of bf16 are rounded.
#pragma once

#include "kvstore/codec/codec.h"

namespace loopserve::kvstore {

class ScaledCodec final : public Codec {
 public:
  // `half_step`: how far a decoded value may be off, against the largest magnitude of its vector,
  // before it is rounded to bf16.
  ScaledCodec(KvDtype codes, uint16_t wire_id, double half_step);

  absl::string_view name() const override { return DtypeName(codes_); }
  uint16_t wire_id() const override { return wire_id_; }
  std::span<const Plane> planes() const override { return {&plane_, 1}; }
  bool Stores(KvDtype dtype) const override { return dtype == KvDtype::kBf16 || dtype == codes_; }
  size_t MaxEncodedBytes(const KvShape& shape, size_t plane) const override;
  absl::Status Encode(
      const KvShape& shape, int32_t tokens, ByteSpan block,
      const std::function<absl::Status(size_t plane, ByteSpan payload)>& out) const override;
  absl::Status Decode(const KvShape& shape, int32_t tokens, std::span<const ByteSpan> planes,
                      MutableByteSpan block) const override;

 private:
  const KvDtype codes_;
  const uint16_t wire_id_;
  const Plane plane_;
};

}  // namespace loopserve::kvstore
