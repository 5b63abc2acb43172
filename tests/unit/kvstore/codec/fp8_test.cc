#include <gtest/gtest.h>

#include "kvstore/codec/codec.h"

namespace loopserve::kvstore {
namespace {

TEST(Fp8Test, ACodeOfNaNIsDamage) {
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp8}) {
    const KvShape shape{
        .layers = 1, .kv_heads = 1, .head_dim = 5, .block_tokens = 1, .dtype = dtype};
    std::vector<std::byte> out(shape.block_bytes());
    for (const int bad : {0x7f, 0xff}) {
      std::vector<std::byte> payload(2 * (4 + 5), std::byte{0});
      const ByteSpan planes[] = {payload};
      EXPECT_TRUE(FindCodec("fp8")->Decode(shape, 1, planes, out).ok());
      payload.back() = static_cast<std::byte>(bad);
      EXPECT_EQ(FindCodec("fp8")->Decode(shape, 1, planes, out).code(),
                absl::StatusCode::kDataLoss);
    }
  }
}

}  // namespace
}  // namespace loopserve::kvstore
