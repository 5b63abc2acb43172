#include "kvstore/device_codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <limits>

#include "tests/support/deferred_memory.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using testing::StatusIs;

// The parameter: how many heads each rank holds.
class DeviceCodecTest : public ::testing::TestWithParam<std::vector<int32_t>> {
 protected:
  DeviceCodecTest() : DeviceCodecTest(new testing::DeferredMemory) {}

  std::vector<std::byte> Encoded(ByteSpan block, int32_t tokens) const {
    std::vector<std::byte> payload;
    EXPECT_OK(codec_.Encode(shape_, tokens, block, [&](size_t, ByteSpan plane) {
      payload.assign(plane.begin(), plane.end());
      return absl::OkStatus();
    }));
    return payload;
  }
  // `count` blocks, of 1, 2 ... tokens.
  struct Blocks {
    std::vector<BlockHandle> handles;
    std::vector<std::vector<std::byte>> logical;
    std::vector<std::vector<std::byte>> payloads;
    std::deque<bool> damaged;
    std::vector<DeviceCodec::Block> coded;
  };
  Blocks Make(int32_t count) {
    Blocks blocks;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t tokens = i % shape_.block_tokens + 1;
      blocks.logical.push_back(testing::RandomBlock(shape_, static_cast<uint32_t>(i)));
      blocks.payloads.push_back(Encoded(blocks.logical.back(), tokens));
      blocks.handles.push_back(*kv_.pool().Allocate());
      blocks.coded.push_back({.id = blocks.handles.back().id(),
                              .tokens = tokens,
                              .payload = blocks.payloads.back().data(),
                              .damaged = &blocks.damaged.emplace_back(false)});
    }
    return blocks;
  }

  testing::DeferredMemory* const memory_;
  const Codec& codec_ = *FindCodec("int8");
  testing::KvPoolFixture kv_;
  const KvShape shape_ = kv_.pool().shape();
  std::unique_ptr<DeviceCodec> device_;

 private:
  explicit DeviceCodecTest(testing::DeferredMemory* memory)
      : memory_(memory),
        kv_(16, testing::SmallShape(), std::unique_ptr<Memory>(memory), GetParam()) {
    memory->CodeFor(codec_);
    device_ = DeviceCodec::Create(codec_, kv_.pool(), common::Logger::Null());
  }
};

INSTANTIATE_TEST_SUITE_P(Ranks, DeviceCodecTest,
                         ::testing::Values(std::vector<int32_t>{3}, std::vector<int32_t>{1, 2},
                                           std::vector<int32_t>{1, 1, 1}));

TEST_P(DeviceCodecTest, EncodesWhatTheHostWould) {
  Blocks blocks = Make(7);
  const auto want = blocks.payloads;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_OK(kv_.pool().WriteBlock(blocks.handles[i].id(), blocks.logical[i]));
    EXPECT_EQ(device_->PayloadBytes(blocks.coded[i].tokens), want[i].size());
    std::ranges::fill(blocks.payloads[i], std::byte{0xee});
  }
  ASSERT_OK(device_->StartEncode(blocks.coded));
  ASSERT_OK(kv_.pool().Fence());
  EXPECT_EQ(blocks.payloads, want);
  EXPECT_EQ(blocks.damaged, std::deque<bool>(7, false));
}

TEST_P(DeviceCodecTest, DecodesWhatTheHostWould) {
  const Blocks blocks = Make(7);
  ASSERT_OK(device_->StartDecode(blocks.coded));
  ASSERT_OK(kv_.pool().Fence());
  for (size_t i = 0; i < blocks.payloads.size(); ++i) {
    std::vector<std::byte> want(shape_.block_bytes()), have(want.size(), std::byte{0xee});
    const ByteSpan plane = blocks.payloads[i];
    ASSERT_OK(codec_.Decode(shape_, blocks.coded[i].tokens, {&plane, 1}, want));
    ASSERT_OK(kv_.pool().ReadBlock(blocks.handles[i].id(), have));
    EXPECT_EQ(have, want) << "block " << i << ", zeros behind its tokens";
  }
  EXPECT_EQ(blocks.damaged, std::deque<bool>(7, false));
}

// Whichever rank it is that finds it out.
TEST_P(DeviceCodecTest, TellsWhichBlockIsDamaged) {
  constexpr uint16_t kNan = 0x7fc1;
  constexpr float kNoScale = -1;
  for (const int32_t head : {0, 1, 2}) {
    Blocks blocks = Make(3);
    for (size_t i = 0; i < 3; ++i) {
      if (i == 1) {
        std::memcpy(blocks.logical[i].data() + shape_.offset(1, KvSide::kValue, head), &kNan, 2);
      }
      ASSERT_OK(kv_.pool().WriteBlock(blocks.handles[i].id(), blocks.logical[i]));
    }
    ASSERT_OK(device_->StartEncode(blocks.coded));
    ASSERT_OK(kv_.pool().Fence());
    EXPECT_EQ(blocks.damaged, (std::deque<bool>{false, true, false})) << head;

    blocks = Make(3);
    const size_t head_payload = blocks.payloads[2].size() / 12;
    std::memcpy(blocks.payloads[2].data() + static_cast<size_t>(9 + head) * head_payload, &kNoScale,
                4);
    ASSERT_OK(device_->StartDecode(blocks.coded));
    ASSERT_OK(kv_.pool().Fence());
    EXPECT_EQ(blocks.damaged, (std::deque<bool>{false, false, true})) << head;
  }
}

TEST_P(DeviceCodecTest, NothingIsNoWork) {
  EXPECT_OK(device_->StartEncode({}));
  EXPECT_OK(device_->StartDecode({}));
  EXPECT_OK(kv_.pool().Fence());
}

TEST_P(DeviceCodecTest, ErrorsOfTheDeviceAreTold) {
  const Blocks blocks = Make(1);
  memory_->FailCopies(0, absl::InternalError("lost"));
  EXPECT_THAT(device_->StartEncode(blocks.coded), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(device_->StartDecode(blocks.coded), StatusIs(absl::StatusCode::kInternal));
}

TEST_P(DeviceCodecTest, IsThereOnlyWhereEveryRankHasIt) {
  common::Logger& log = common::Logger::Null();
  EXPECT_EQ(DeviceCodec::Create(*FindCodec("bf16"), kv_.pool(), log), nullptr);
  testing::KvPoolFixture on_host;
  EXPECT_EQ(DeviceCodec::Create(codec_, on_host.pool(), log), nullptr);
  KvShape shape = shape_;
  shape.dtype = KvDtype::kInt8;
  const auto of_int8 = *KvBlockPool::Create(shape, 1, {{memory_, 0, 3}});
  EXPECT_EQ(DeviceCodec::Create(codec_, *of_int8, log), nullptr);
  const auto host = CreateHostMemory();
  const auto mixed = *KvBlockPool::Create(shape_, 1, {{memory_, 0, 1}, {host.get(), 1, 2}});
  EXPECT_EQ(DeviceCodec::Create(codec_, *mixed, log), nullptr);
  memory_->RefuseCoders(absl::ResourceExhaustedError("no memory"));
  EXPECT_EQ(DeviceCodec::Create(codec_, kv_.pool(), log), nullptr);
}

}  // namespace
}  // namespace loopserve::kvstore
