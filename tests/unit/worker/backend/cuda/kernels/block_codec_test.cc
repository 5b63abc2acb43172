#include "worker/backend/cuda/kernels/block_codec.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::KvDtype;

class BlockCodecTest : public LaunchTest {
 protected:
  BlockCodecArgs Args(int32_t count, int32_t tokens = 16) const {
    BlockCodecArgs args;
    args.arena = {.shape = {.layers = 2, .kv_heads = 3, .head_dim = 64, .block_tokens = 16},
                  .num_blocks = 100,
                  .base = Memory<std::byte>()};
    args.blocks = Memory<uint32_t>();
    args.count = count;
    args.tokens = tokens;
    args.payloads = Memory<std::byte>();
    args.damaged = Memory<uint32_t>();
    return args;
  }
  void ExpectRefused(const BlockCodecArgs& args) {
    EXPECT_EQ(LaunchInt8EncodeBlocks(args, stream_), cudaErrorInvalidValue);
    EXPECT_EQ(LaunchInt8DecodeBlocks(args, stream_), cudaErrorInvalidValue);
    ExpectNoLaunch();
  }
};

TEST_F(BlockCodecTest, HasAThreadBlockForEachHeadOfEachBlock) {
  for (const int32_t count : {1, 4, 500}) {
    EXPECT_EQ(LaunchInt8EncodeBlocks(Args(count), stream_), cudaSuccess);
    const fake::Launch encode = Only("Int8EncodeKernel");
    EXPECT_EQ(encode.grid.x, 2u * 2 * 3);
    EXPECT_EQ(encode.grid.y, static_cast<unsigned>(count));
    EXPECT_EQ(LaunchInt8DecodeBlocks(Args(count, 5), stream_), cudaSuccess);
    const fake::Launch decode = Only("Int8DecodeKernel");
    EXPECT_EQ(decode.grid.x, 2u * 2 * 3);
    EXPECT_EQ(decode.grid.y, static_cast<unsigned>(count));
  }
}

TEST_F(BlockCodecTest, BeginsWithNoBlockDamaged) {
  ASSERT_EQ(cudaMemset(Memory(), 1, 5 * 4), cudaSuccess);
  EXPECT_EQ(LaunchInt8EncodeBlocks(Args(4), stream_), cudaSuccess);
  const auto* damaged = Memory<uint32_t>();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(damaged[i], 0u);
  EXPECT_EQ(damaged[4], 0x01010101u) << "not ours";
}

TEST_F(BlockCodecTest, NoBlocksLaunchNothing) {
  EXPECT_EQ(LaunchInt8EncodeBlocks(Args(0), stream_), cudaSuccess);
  EXPECT_EQ(LaunchInt8DecodeBlocks(Args(0), stream_), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(BlockCodecTest, RefusesWhatItCannotCode) {
  for (const int32_t tokens : {0, 17, -1}) ExpectRefused(Args(1, tokens));
  ExpectRefused(Args(-1));
  ExpectRefused(Args(65536));
  BlockCodecArgs args = Args(1);
  args.arena.shape.dtype = KvDtype::kF32;
  ExpectRefused(args);
  args = Args(1);
  args.arena.shape.head_dim = 66;
  ExpectRefused(args);
}

TEST_F(BlockCodecTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return LaunchInt8EncodeBlocks(Args(2), stream_); });
  ExpectTellsErrors([&] { return LaunchInt8DecodeBlocks(Args(2), stream_); });
  fake::FailCall("cudaMemsetAsync", 1, cudaErrorIllegalAddress);
  EXPECT_EQ(LaunchInt8EncodeBlocks(Args(2), stream_), cudaErrorIllegalAddress);
  ExpectNoLaunch();
}

TEST(Int8PayloadBytes, CountsScalesAndCodes) {
  constexpr kvstore::KvShape kShape = {.layers = 2, .kv_heads = 3, .head_dim = 64};
  EXPECT_EQ(Int8PayloadBytes(kShape, 5), 2u * 2 * 3 * 5 * (4 + 64));
}

}  // namespace
}  // namespace loopserve::worker::cuda
