#include "kvstore/block_saver.h"

#include <gtest/gtest.h>

#include "kvstore/prefix_index.h"
#include "tests/support/deferred_memory.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

using testing::StatusIs;

class BlockSaverTest : public ::testing::TestWithParam<const char*> {
 protected:
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

  const Codec& codec_ = *FindCodec(GetParam());
  const BlockKey root_ = RootKey({.model = "m"});
  const std::vector<common::TokenId> tokens_ = testing::RandomTokens(10, 3);
  testing::DeferredMemory* memory_ = nullptr;
  mutable testing::KvPoolFixture kv_{8, testing::SmallShape(), [this] {
                                       auto memory = std::make_unique<testing::DeferredMemory>();
                                       memory_ = memory.get();
                                       return memory;
                                     }()};
  const std::shared_ptr<HostArena> arena_ = *HostArena::Create(*memory_, 1 << 20);
  const std::unique_ptr<Tier> tier_ = testing::MakeHostTier(1 << 20);
};

INSTANTIATE_TEST_SUITE_P(Codecs, BlockSaverTest, ::testing::Values("bf16", "int8"));

TEST_P(BlockSaverTest, RecordsAreThoseOfTheFormatAndLieInTheArena) {
  const auto blocks = kv_.Compute(tokens_);
  BlockSaver saver(codec_, kv_.pool(), *tier_, arena_);
  for (size_t i = 0; i < blocks.size(); ++i) ASSERT_OK(saver.Start(Header(i), i, blocks[i]));
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
}

TEST_P(BlockSaverTest, ACopyThatFailsIsNotHandedOver) {
  const auto blocks = kv_.Compute(tokens_);
  BlockSaver saver(codec_, kv_.pool(), *tier_, arena_);
  ASSERT_OK(saver.Start(Header(0), 0, blocks[0]));
  // Half of the second block's copies are issued.
  memory_->FailCopies(3, absl::InternalError("lost"));
  EXPECT_THAT(saver.Start(Header(1), 1, blocks[1]), StatusIs(absl::StatusCode::kInternal));
  const auto arrived = *saver.Arrived();
  ASSERT_EQ(arrived.size(), 1u);
  EXPECT_EQ(arrived[0].index, 0u);
}

TEST_P(BlockSaverTest, AFailedFenceHandsNothingOver) {
  const auto blocks = kv_.Compute(tokens_);
  BlockSaver saver(codec_, kv_.pool(), *tier_, arena_);
  ASSERT_OK(saver.Start(Header(0), 0, blocks[0]));
  memory_->FailFences(absl::InternalError("lost"));
  EXPECT_THAT(saver.Arrived(), StatusIs(absl::StatusCode::kInternal));
}

}  // namespace
}  // namespace loopserve::kvstore
