#include "worker/backend/cuda/kernels/block_codec.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::KvDtype;

class BlockCodecTest : public LaunchTest {
 protected:
  BlockCodecArgs Args(size_t count, int32_t tokens = 16) {
    BlockCodecArgs args;
    args.shape = {.layers = 2, .kv_heads = 3, .head_dim = 64, .block_tokens = 16};
    blocks_.clear();
    for (size_t i = 0; i < count; ++i) blocks_.push_back({Memory<std::byte>() + i, tokens});
    args.blocks = blocks_;
    args.payloads = Memory<std::byte>(1024);
    args.payload_stride = Int8PayloadBytes(args.shape, 16);
    args.damaged = Memory<uint32_t>();
    return args;
  }
  void ExpectRefused(const BlockCodecArgs& args) {
    EXPECT_EQ(LaunchInt8EncodeBlocks(args, stream_), cudaErrorInvalidValue);
    EXPECT_EQ(LaunchInt8DecodeBlocks(args, stream_), cudaErrorInvalidValue);
    ExpectNoLaunch();
  }
  // What the kernels get, launch by launch.
  std::vector<Int8Launch> got_;
  std::vector<Int8Block> blocks_;
};

TEST_F(BlockCodecTest, HasAThreadBlockForEachHeadOfEachBlock) {
  for (const size_t count : {1u, 4u, 32u}) {
    EXPECT_EQ(LaunchInt8EncodeBlocks(Args(count), stream_), cudaSuccess);
    const fake::Launch encode = Only("Int8EncodeKernel");
    EXPECT_EQ(encode.grid.x, 2u * 2 * 3);
    EXPECT_EQ(encode.grid.y, count);
    EXPECT_EQ(LaunchInt8DecodeBlocks(Args(count, 5), stream_), cudaSuccess);
    const fake::Launch decode = Only("Int8DecodeKernel");
    EXPECT_EQ(decode.grid.x, 2u * 2 * 3);
    EXPECT_EQ(decode.grid.y, count);
  }
}

TEST_F(BlockCodecTest, ManyBlocksTakeSeveralLaunches) {
  fake::Emulate("Int8EncodeKernel",
                [&](void** arguments) { got_.push_back(*static_cast<Int8Launch*>(arguments[0])); });
  const BlockCodecArgs args = Args(70, 3);
  EXPECT_EQ(LaunchInt8EncodeBlocks(args, stream_), cudaSuccess);
  const std::vector<fake::Launch> launches = Take();
  ASSERT_EQ(launches.size(), 3u);
  ASSERT_EQ(got_.size(), 3u);
  size_t block = 0;
  for (size_t n = 0; n < 3; ++n) {
    EXPECT_EQ(got_[n].payloads, args.payloads + block * args.payload_stride);
    EXPECT_EQ(got_[n].damaged, args.damaged + block);
    for (unsigned i = 0; i < launches[n].grid.y; ++i, ++block) {
      EXPECT_EQ(got_[n].blocks[i], blocks_[block].block);
      EXPECT_EQ(got_[n].tokens[i], 3);
    }
  }
  EXPECT_EQ(block, 70u);
}

TEST_F(BlockCodecTest, NoBlocksLaunchNothing) {
  EXPECT_EQ(LaunchInt8EncodeBlocks(Args(0), stream_), cudaSuccess);
  EXPECT_EQ(LaunchInt8DecodeBlocks(Args(0), stream_), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(BlockCodecTest, RefusesWhatItCannotCode) {
  for (const int32_t tokens : {0, 17, -1}) ExpectRefused(Args(1, tokens));
  BlockCodecArgs args = Args(1);
  args.shape.dtype = KvDtype::kF32;
  ExpectRefused(args);
  args = Args(1);
  args.shape.head_dim = 62;
  ExpectRefused(args);
  args = Args(1);
  args.payload_stride -= 4;
  ExpectRefused(args);
  args = Args(1);
  args.payload_stride += 2;
  ExpectRefused(args);
}

TEST_F(BlockCodecTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return LaunchInt8EncodeBlocks(Args(2), stream_); });
  ExpectTellsErrors([&] { return LaunchInt8DecodeBlocks(Args(33), stream_); }, 2);
}

TEST(Int8PayloadBytes, CountsScalesAndCodes) {
  constexpr kvstore::KvShape kShape = {.layers = 2, .kv_heads = 3, .head_dim = 64};
  EXPECT_EQ(Int8PayloadBytes(kShape, 5), 2u * 2 * 3 * 5 * (4 + 64));
}

}  // namespace
}  // namespace loopserve::worker::cuda
