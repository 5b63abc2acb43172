#include <array>

#include "kvstore/codec/codec.h"

namespace loopserve::kvstore {

#define CODEC(name) const Codec& codec_##name();
#include "kvstore/codec/codecs.def"
#undef CODEC

std::span<const Codec* const> AllCodecs() {
#define CODEC(name) &codec_##name(),
  static const std::array kTable = {
#include "kvstore/codec/codecs.def"
  };
#undef CODEC
  return kTable;
}

const Codec* FindCodec(absl::string_view name) {
  for (const Codec* codec : AllCodecs()) {
    if (codec->name() == name) return codec;
  }
  return nullptr;
}

const Codec* FindCodec(uint16_t wire_id) {
  for (const Codec* codec : AllCodecs()) {
    if (codec->wire_id() == wire_id) return codec;
  }
  return nullptr;
}

}  // namespace loopserve::kvstore
