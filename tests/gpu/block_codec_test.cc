// The int8 codec on the device against the one of the store: equal bits, both ways.
#include "worker/backend/cuda/kernels/block_codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "kvstore/codec/codec.h"
#include "tests/support/kv_bytes.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/handles.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::ByteSpan;
using kvstore::KvShape;

constexpr uint32_t kBlocks = 5;
const std::vector<uint32_t> kIds = {3, 0, 4};

struct Case {
  KvShape shape;
  int32_t tokens;
};

class BlockCodecTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "skipped: no CUDA device";
    }
    arena_bytes_ = *DeviceRegion::Create(kBlocks * shape_.block_bytes());
    payloads_ = *DeviceRegion::Create(kIds.size() * payload_bytes_);
    damaged_ = *PinnedRegion::Create(kIds.size() * sizeof(uint32_t));
    stream_ = *Stream::Create();
    for (const uint32_t id : kIds) blocks_.push_back({Block(id), tokens_});
    ASSERT_EQ(cudaMemset(arena_bytes_.data(), 0xee, arena_bytes_.size()), cudaSuccess);
  }

  BlockCodecArgs Args() {
    std::memset(damaged_.data(), 0, damaged_.size());
    return {.shape = shape_,
            .blocks = blocks_,
            .payloads = payloads_.data(),
            .payload_stride = payload_bytes_,
            .damaged = reinterpret_cast<uint32_t*>(damaged_.data())};
  }
  static void ToDevice(const void* from, std::byte* to, size_t bytes) {
    ASSERT_EQ(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  static std::vector<std::byte> ToHost(const std::byte* from, size_t bytes) {
    std::vector<std::byte> host(bytes);
    EXPECT_EQ(cudaMemcpy(host.data(), from, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }
  std::byte* Block(uint32_t id) { return arena_bytes_.data() + id * shape_.block_bytes(); }
  std::vector<uint32_t> Damaged() {
    std::vector<uint32_t> damaged(kIds.size());
    std::memcpy(damaged.data(), damaged_.data(), damaged_.size());
    return damaged;
  }

  // Random, with vectors of zeros, of the smallest and of the largest values.
  std::vector<std::byte> BlockOf(uint32_t seed) const {
    std::vector<std::byte> block = testing::RandomBlock(shape_, seed);
    const uint16_t specials[] = {0x0000, 0x8000, 0x0001, 0x0080, 0x05ff, 0x7f7f, 0xff7f};
    for (size_t i = 0; i < std::size(specials); ++i) {
      std::byte* vector = block.data() + (2 * i + 1) * shape_.head_bytes();
      if (vector >= block.data() + block.size()) break;
      for (size_t at = 0; at < shape_.vector_bytes(); at += 2) {
        std::memcpy(vector + at, &specials[i], 2);
      }
    }
    return block;
  }
  std::vector<std::byte> Encoded(ByteSpan block) const {
    std::vector<std::byte> payload;
    EXPECT_OK(codec_.Encode(shape_, tokens_, block, [&](size_t, ByteSpan plane) {
      payload.assign(plane.begin(), plane.end());
      return absl::OkStatus();
    }));
    return payload;
  }

  const KvShape shape_ = GetParam().shape;
  const int32_t tokens_ = GetParam().tokens;
  const size_t payload_bytes_ = Int8PayloadBytes(shape_, tokens_);
  const kvstore::Codec& codec_ = *kvstore::FindCodec("int8");
  DeviceRegion arena_bytes_, payloads_;
  PinnedRegion damaged_;
  std::vector<Int8Block> blocks_;  // those of kIds
  Stream stream_;
};

INSTANTIATE_TEST_SUITE_P(
    Shapes, BlockCodecTest,
    ::testing::Values(Case{{.layers = 4, .kv_heads = 8, .head_dim = 128, .block_tokens = 32}, 32},
                      Case{{.layers = 4, .kv_heads = 8, .head_dim = 128, .block_tokens = 32}, 5},
                      Case{{.layers = 3, .kv_heads = 3, .head_dim = 64, .block_tokens = 16}, 16},
                      Case{{.layers = 2, .kv_heads = 1, .head_dim = 80, .block_tokens = 32}, 1},
                      Case{{.layers = 1, .kv_heads = 2, .head_dim = 256, .block_tokens = 32}, 31}));

TEST_P(BlockCodecTest, EncodesTheSameBits) {
  std::vector<std::vector<std::byte>> blocks;
  for (const uint32_t id : kIds) {
    blocks.push_back(BlockOf(id + 1));
    ToDevice(blocks.back().data(), Block(id), shape_.block_bytes());
  }
  ASSERT_OK(ToStatus(LaunchInt8EncodeBlocks(Args(), stream_.get()), "encode"));
  ASSERT_OK(stream_.Synchronize());
  EXPECT_EQ(Damaged(), std::vector<uint32_t>(kIds.size(), 0));
  for (size_t i = 0; i < kIds.size(); ++i) {
    EXPECT_EQ(ToHost(payloads_.data() + i * payload_bytes_, payload_bytes_), Encoded(blocks[i]))
        << "block " << i;
  }
}

TEST_P(BlockCodecTest, DecodesTheSameBitsAndLeavesTheRestAlone) {
  std::vector<std::vector<std::byte>> payloads;
  for (size_t i = 0; i < kIds.size(); ++i) {
    payloads.push_back(Encoded(BlockOf(static_cast<uint32_t>(i) + 7)));
    ToDevice(payloads[i].data(), payloads_.data() + i * payload_bytes_, payload_bytes_);
  }
  ASSERT_OK(ToStatus(LaunchInt8DecodeBlocks(Args(), stream_.get()), "decode"));
  ASSERT_OK(stream_.Synchronize());
  EXPECT_EQ(Damaged(), std::vector<uint32_t>(kIds.size(), 0));
  for (size_t i = 0; i < kIds.size(); ++i) {
    std::vector<std::byte> want(shape_.block_bytes(), std::byte{0xee});
    const ByteSpan plane = payloads[i];
    ASSERT_OK(codec_.Decode(shape_, tokens_, {&plane, 1}, want));
    EXPECT_EQ(ToHost(Block(kIds[i]), shape_.block_bytes()), want) << "block " << i;
  }
  for (const uint32_t id : {1u, 2u}) {
    EXPECT_EQ(ToHost(Block(id), shape_.block_bytes()),
              std::vector<std::byte>(shape_.block_bytes(), std::byte{0xee}));
  }
}

TEST_P(BlockCodecTest, TellsWhichBlockHasNoEncoding) {
  for (const uint16_t value : {uint16_t{0x7f80}, uint16_t{0xffc1}}) {  // infinity, NaN
    for (size_t i = 0; i < kIds.size(); ++i) {
      std::vector<std::byte> block = BlockOf(kIds[i]);
      if (i == 1) std::memcpy(block.data() + 2, &value, 2);
      ToDevice(block.data(), Block(kIds[i]), block.size());
    }
    ASSERT_OK(ToStatus(LaunchInt8EncodeBlocks(Args(), stream_.get()), "encode"));
    ASSERT_OK(stream_.Synchronize());
    EXPECT_EQ(Damaged(), (std::vector<uint32_t>{0, 1, 0}));
  }
}

TEST_P(BlockCodecTest, TellsWhichPayloadIsNone) {
  for (const float scale : {-1.0f, std::numeric_limits<float>::infinity()}) {
    for (size_t i = 0; i < kIds.size(); ++i) {
      std::vector<std::byte> payload = Encoded(BlockOf(kIds[i]));
      if (i == 2) std::memcpy(payload.data(), &scale, sizeof scale);
      ToDevice(payload.data(), payloads_.data() + i * payload_bytes_, payload.size());
    }
    ASSERT_OK(ToStatus(LaunchInt8DecodeBlocks(Args(), stream_.get()), "decode"));
    ASSERT_OK(stream_.Synchronize());
    EXPECT_EQ(Damaged(), (std::vector<uint32_t>{0, 0, 1}));
  }
}

TEST_P(BlockCodecTest, BlocksOfALaunchMayHoldDifferentNumbersOfTokens) {
  if (tokens_ == 1) return;
  blocks_[1].tokens = tokens_ / 2;
  std::vector<std::vector<std::byte>> want;
  for (size_t i = 0; i < kIds.size(); ++i) {
    const std::vector<std::byte> block = BlockOf(kIds[i] + 1);
    ToDevice(block.data(), Block(kIds[i]), shape_.block_bytes());
    ASSERT_OK(codec_.Encode(shape_, blocks_[i].tokens, block, [&](size_t, ByteSpan plane) {
      want.emplace_back(plane.begin(), plane.end());
      return absl::OkStatus();
    }));
  }
  ASSERT_OK(ToStatus(LaunchInt8EncodeBlocks(Args(), stream_.get()), "encode"));
  ASSERT_OK(stream_.Synchronize());
  for (size_t i = 0; i < kIds.size(); ++i) {
    EXPECT_EQ(ToHost(payloads_.data() + i * payload_bytes_, want[i].size()), want[i]) << i;
  }
}

TEST_P(BlockCodecTest, RefusesWhatItDoesNotKnow) {
  blocks_[1].tokens = shape_.block_tokens + 1;
  EXPECT_EQ(LaunchInt8EncodeBlocks(Args(), stream_.get()), cudaErrorInvalidValue);
  blocks_[1].tokens = tokens_;
  BlockCodecArgs args = Args();
  args.shape.dtype = kvstore::KvDtype::kInt8;
  EXPECT_EQ(LaunchInt8DecodeBlocks(args, stream_.get()), cudaErrorInvalidValue);
  args = Args();
  args.blocks = {};
  EXPECT_EQ(LaunchInt8DecodeBlocks(args, stream_.get()), cudaSuccess);
}

}  // namespace
}  // namespace loopserve::worker::cuda
