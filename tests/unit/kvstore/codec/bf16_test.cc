#include <gtest/gtest.h>

#include "kvstore/codec/codec.h"
#include "tests/support/kv_bytes.h"

namespace loopserve::kvstore {
namespace {

TEST(Bf16Test, AFullBlockIsItsOwnPayload) {
  const KvShape shape = testing::SmallShape();
  const auto block = testing::RandomBlock(shape, 1);
  std::vector<std::byte> payload;
  ASSERT_TRUE(FindCodec("bf16")
                  ->Encode(shape, shape.block_tokens, block,
                           [&](size_t, ByteSpan p) {
                             payload.assign(p.begin(), p.end());
                             return absl::OkStatus();
                           })
                  .ok());
  EXPECT_EQ(payload, block);
}

TEST(Bf16Test, APartialBlockStoresItsTokensOnly) {
  const KvShape shape = testing::SmallShape();
  size_t bytes = 0;
  ASSERT_TRUE(FindCodec("bf16")
                  ->Encode(shape, 1, testing::RandomBlock(shape, 1),
                           [&](size_t, ByteSpan p) {
                             bytes = p.size();
                             return absl::OkStatus();
                           })
                  .ok());
  EXPECT_EQ(bytes, shape.token_bytes());
}

TEST(Bf16Test, RefusesF32) {
  KvShape shape = testing::SmallShape();
  shape.dtype = KvDtype::kF32;
  const std::vector<std::byte> block(shape.block_bytes());
  EXPECT_EQ(FindCodec("bf16")
                ->Encode(shape, 1, block, [](size_t, ByteSpan) { return absl::OkStatus(); })
                .code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace loopserve::kvstore
