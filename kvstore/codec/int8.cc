// int8: a signed byte per value (scaled_codec.h). Steps are 1/127 of a vector's largest magnitude.
#include "kvstore/codec/scaled_codec.h"

namespace loopserve::kvstore {

const Codec& codec_int8() {
  static const ScaledCodec kCodec(KvDtype::kInt8, 2, 0.5 / 127);
  return kCodec;
}

}  // namespace loopserve::kvstore
