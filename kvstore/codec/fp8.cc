// fp8: an E4M3 number per value (scaled_codec.h). The largest numbers, up to 448, are 32 apart.
#include "kvstore/codec/scaled_codec.h"

namespace loopserve::kvstore {

const Codec& codec_fp8() {
  static const ScaledCodec kCodec(KvDtype::kFp8, 3, 16.0 / 448);
  return kCodec;
}

}  // namespace loopserve::kvstore
