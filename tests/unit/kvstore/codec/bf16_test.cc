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

TEST(Bf16Test, RefusesOtherDtypes) {
  for (const KvDtype dtype : {KvDtype::kF32, KvDtype::kInt8, KvDtype::kFp8}) {
    KvShape shape = testing::SmallShape();
    shape.dtype = dtype;
    std::vector<std::byte> block(shape.block_bytes());
    const absl::Status status = FindCodec("bf16")->Encode(
        shape, 1, block, [](size_t, ByteSpan) { return absl::OkStatus(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), std::string("codec bf16 stores no blocks of ") + DtypeName(dtype));
    const ByteSpan planes[] = {block};
    EXPECT_EQ(FindCodec("bf16")->Decode(shape, 4, planes, block).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace loopserve::kvstore
