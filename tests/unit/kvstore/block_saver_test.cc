#include "kvstore/block_saver.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kvstore/prefix_index.h"
#include "tests/support/deferred_memory.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using testing::StatusIs;

struct Case {
  const char* codec;
  bool on_device;  // where the device has that codec
  std::vector<int32_t> heads_of_ranks;
};

class BlockSaverTest : public ::testing::TestWithParam<Case> {
 protected:
  BlockSaver Saver() {
    return {codec_, kv_.pool(), *tier_, arena_, GetParam().on_device ? device_.get() : nullptr};
  }
  BlockHeader Header(size_t block) const {
    const auto keys = BlockKeys(root_, tokens_, 4);
    const auto part = std::span(tokens_).subspan(block * 4, std::min<size_t>(4, 10 - block * 4));
    return {.codec = codec_.wire_id(),
            .shape = kv_.pool().shape(),
            .root = root_,
            .parent = block == 0 ? root_ : keys[block - 1],
            .key = keys[block],
            .num_tokens = static_cast<int32_t>(part.size()),
            .tokens = {part.begin(), part.end()}};
  }
  // What it would be if it were encoded at once.
  std::vector<std::byte> Record(size_t block) {
    std::vector<std::byte> record;
    const auto kv = kv_.KvOf(std::span(tokens_).first(std::min<size_t>(10, block * 4 + 4)));
    EXPECT_OK(codec_.Encode(kv_.pool().shape(), Header(block).num_tokens, kv,
                            [&](size_t, ByteSpan payload) {
                              record = EncodeBlockRecord(Header(block), payload);
                              return absl::OkStatus();
                            }));
    return record;
  }

  bool OnDevice() const { return GetParam().on_device && device_ != nullptr; }

  const Codec& codec_ = *FindCodec(GetParam().codec);
  const BlockKey root_ = RootKey({.model = "m"});
  const std::vector<common::TokenId> tokens_ = testing::RandomTokens(10, 3);
  testing::DeferredMemory* memory_ = nullptr;
  testing::HostBlockCoder* coder_ = nullptr;
  mutable testing::KvPoolFixture kv_{8, testing::SmallShape(),
                                     [this] {
                                       auto memory = std::make_unique<testing::DeferredMemory>();
                                       memory_ = memory.get();
                                       coder_ = &memory->CodeFor(*FindCodec("int8"));
                                       return memory;
                                     }(),
                                     GetParam().heads_of_ranks};
  const std::unique_ptr<DeviceCodec> device_ =
      DeviceCodec::Create(codec_, kv_.pool(), common::Logger::Null());
  const std::shared_ptr<HostArena> arena_ = *HostArena::Create(*memory_, 1 << 20);
  const std::unique_ptr<Tier> tier_ = testing::MakeHostTier(1 << 20);
};

INSTANTIATE_TEST_SUITE_P(Codecs, BlockSaverTest,
                         ::testing::Values(Case{"bf16", true, {1, 2}}, Case{"int8", false, {1, 2}},
                                           Case{"int8", true, {3}}, Case{"int8", true, {1, 2}},
                                           Case{"int8", true, {1, 1, 1}}));

TEST_P(BlockSaverTest, RecordsAreThoseOfTheFormatAndLieInTheArena) {
  const auto blocks = kv_.Compute(tokens_);
  BlockSaver saver = Saver();
  for (size_t i = 0; i < blocks.size(); ++i) saver.Add(Header(i), i, blocks[i]);
  ASSERT_OK(saver.Start());
  const int fences = memory_->fences();
  auto arrived = *saver.Arrived();
  EXPECT_EQ(memory_->fences() - fences, kv_.pool().ranks()) << "one wait for all";
  ASSERT_EQ(arrived.size(), blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(arrived[i].index, i);
    uint64_t bytes = 0;
    saver.Seal(arrived[i]);
    ASSERT_OK(saver.Put(arrived[i], bytes));
    const Entry entry = *tier_->Get({Header(i).key, 0});
    const std::vector<std::byte> want = Record(i);
    EXPECT_EQ(bytes, want.size());
    EXPECT_TRUE(std::ranges::equal(*entry.bytes, want));
    EXPECT_TRUE(entry.bytes->in_arena());
  }
  EXPECT_TRUE(saver.Arrived()->empty());
  EXPECT_EQ(coder_->encodes(), OnDevice() ? kv_.pool().ranks() : 0) << "one call for all";
}

TEST_P(BlockSaverTest, RoundsOverlap) {
  const auto blocks = kv_.Compute(tokens_);
  BlockSaver saver = Saver();
  EXPECT_OK(saver.Start()) << "nothing was added";
  for (size_t i = 0; i < blocks.size(); ++i) {
    saver.Add(Header(i), i, blocks[i]);
    ASSERT_OK(saver.Start());
  }
  auto arrived = *saver.Arrived();
  ASSERT_EQ(arrived.size(), blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    uint64_t bytes = 0;
    saver.Seal(arrived[i]);
    ASSERT_OK(saver.Put(arrived[i], bytes));
    EXPECT_TRUE(std::ranges::equal(*tier_->Get({Header(i).key, 0})->bytes, Record(i)));
  }
}

// What the host codec says of it is what a save says, whoever encodes.
TEST_P(BlockSaverTest, ABlockWithoutAnEncodingIsTheHostCodecs) {
  const auto blocks = kv_.Compute(tokens_);
  std::vector<std::byte> bytes(kv_.pool().shape().block_bytes());
  ASSERT_OK(kv_.pool().ReadBlock(blocks[1].id(), bytes));
  constexpr uint16_t kInfinity = 0x7f80;
  std::memcpy(bytes.data() + bytes.size() - kv_.pool().shape().head_bytes(), &kInfinity, 2);
  ASSERT_OK(kv_.pool().WriteBlock(blocks[1].id(), bytes));
  BlockSaver saver = Saver();
  for (size_t i = 0; i < blocks.size(); ++i) saver.Add(Header(i), i, blocks[i]);
  ASSERT_OK(saver.Start());
  auto arrived = *saver.Arrived();
  ASSERT_EQ(arrived.size(), blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(arrived[i].damaged, OnDevice() && i == 1) << i;
    saver.Seal(arrived[i]);
    uint64_t put = 0;
    const absl::Status want = codec_.Encode(kv_.pool().shape(), 2, bytes,
                                            [](size_t, ByteSpan) { return absl::OkStatus(); });
    EXPECT_EQ(saver.Put(arrived[i], put), i == 1 ? want : absl::OkStatus()) << i;
  }
}

TEST_P(BlockSaverTest, ACopyThatFailsIsNotHandedOver) {
  const auto blocks = kv_.Compute(tokens_);
  BlockSaver saver = Saver();
  saver.Add(Header(0), 0, blocks[0]);
  ASSERT_OK(saver.Start());
  // Some of the second block's copies are issued.
  memory_->FailCopies(OnDevice() ? kv_.pool().ranks() - 1 : 3, absl::InternalError("lost"));
  saver.Add(Header(1), 1, blocks[1]);
  EXPECT_THAT(saver.Start(), StatusIs(absl::StatusCode::kInternal));
  const auto arrived = *saver.Arrived();
  ASSERT_EQ(arrived.size(), 1u);
  EXPECT_EQ(arrived[0].index, 0u);
}

TEST_P(BlockSaverTest, AFailedFenceHandsNothingOver) {
  const auto blocks = kv_.Compute(tokens_);
  BlockSaver saver = Saver();
  saver.Add(Header(0), 0, blocks[0]);
  ASSERT_OK(saver.Start());
  memory_->FailFences(absl::InternalError("lost"));
  EXPECT_THAT(saver.Arrived(), StatusIs(absl::StatusCode::kInternal));
}

}  // namespace
}  // namespace loopserve::kvstore
