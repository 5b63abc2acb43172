#include <gtest/gtest.h>

#include "kvstore/codec/codec.h"

namespace loopserve::kvstore {
namespace {

TEST(Int8Test, AnyCodeIsANumber) {
  KvShape shape{.layers = 1, .kv_heads = 1, .head_dim = 256, .block_tokens = 1};
  shape.dtype = KvDtype::kInt8;
  std::vector<std::byte> payload(shape.block_bytes());
  for (size_t i = 0; i < 256; ++i) payload[4 + i] = static_cast<std::byte>(i);
  std::vector<std::byte> out(shape.block_bytes());
  const ByteSpan planes[] = {payload};
  EXPECT_TRUE(FindCodec("int8")->Decode(shape, 1, planes, out).ok());
}

}  // namespace
}  // namespace loopserve::kvstore
