// Codec: bytes of one KV block <-> an ordered list of planes.
//
// A block is encoded once, when its turn ends, into planes: a base, and refinements that each bring
// it closer to the original. Any *prefix* of the planes is a valid block at lower quality, so
// demoting a block under pressure deletes its last plane, costs no compute and never re-quantises a
// lossy copy. A codec that cannot nest has one plane.
//
// Thread rule: stateless and const, safe from any thread. Adding a codec: one file, one line in
// codecs.def.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kvstore/kv_shape.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

struct Plane {
  double bits_per_value;      // of a full block
  double max_relative_error;  // of a value, against the largest magnitude in its vector, when this
                              // plane and all before it are present; 0 = exact
};

class Codec {
 public:
  virtual ~Codec() = default;
  virtual absl::string_view name() const = 0;  // also the config value
  virtual uint16_t wire_id() const = 0;        // written in every block header; never reused
  virtual std::span<const Plane> planes() const = 0;
  // Whether it takes blocks of that dtype.
  virtual bool Stores(KvDtype dtype) const = 0;
  virtual size_t MaxEncodedBytes(const KvShape& shape, size_t plane) const = 0;
  // Encodes the first `tokens` positions of a logical block (kv_shape.h); calls `out` once per
  // plane, base first. InvalidArgument for a dtype that it does not store.
  virtual absl::Status Encode(
      const KvShape& shape, int32_t tokens, ByteSpan block,
      const std::function<absl::Status(size_t plane, ByteSpan payload)>& out) const = 0;
  // Whether the payload of such a block, then its only plane, is the logical block as it lies. Who
  // copies blocks may then leave out Encode and Decode.
  virtual bool IsBlockItself(const KvShape& shape, int32_t tokens) const {
    static_cast<void>(shape), static_cast<void>(tokens);
    return false;
  }
  // Decodes a prefix of planes into the first `tokens` positions of `block`; other positions are
  // left alone. DataLoss when the bytes cannot be an encoding of this shape.
  virtual absl::Status Decode(const KvShape& shape, int32_t tokens,
                              std::span<const ByteSpan> planes, MutableByteSpan block) const = 0;
};

// All codecs of codecs.def.
std::span<const Codec* const> AllCodecs();
// Null when there is none of that name or id.
const Codec* FindCodec(absl::string_view name);
const Codec* FindCodec(uint16_t wire_id);

}  // namespace loopserve::kvstore
