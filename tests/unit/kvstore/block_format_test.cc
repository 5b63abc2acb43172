#include "kvstore/block_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/golden.h"
#include "tests/support/kv_bytes.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

BlockHeader SomeHeader() {
  return {.codec = 2,
          .plane = 0,
          .shape = testing::SmallShape(),
          .root = {common::Hash128{1, 2}},
          .parent = {common::Hash128{3, 4}},
          .key = {common::Hash128{5, 6}},
          .num_tokens = 3,
          .tokens = {7, 8, 49151}};
}

ExpectedBlock Expected(const BlockHeader& header) {
  return {.shape = header.shape,
          .root = header.root,
          .parent = header.parent,
          .key = header.key,
          .plane = header.plane,
          .tokens = header.tokens};
}

TEST(BlockFormatTest, RoundTrip) {
  const auto payload = testing::RandomBytes(100, 1);
  const auto bytes = EncodeBlockRecord(SomeHeader(), payload);
  const auto record = ParseBlockRecord(bytes);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->header, SomeHeader());
  EXPECT_TRUE(std::ranges::equal(record->payload, payload));
  EXPECT_TRUE(CheckBlock(record->header, Expected(SomeHeader())).ok());
}

TEST(BlockFormatTest, RefinementPlanesCarryNoTokenIds) {
  BlockHeader header = SomeHeader();
  header.plane = 1;
  header.tokens.clear();
  const auto bytes = EncodeBlockRecord(header, {});
  const auto record = ParseBlockRecord(bytes);
  ASSERT_TRUE(record.ok()) << record.status();
  const std::vector<common::TokenId> tokens = {7, 8, 49151};
  ExpectedBlock expected = Expected(header);
  expected.tokens = tokens;
  EXPECT_TRUE(CheckBlock(record->header, expected).ok());
}

TEST(BlockFormatTest, EveryBitFlipIsFound) {
  const auto bytes = EncodeBlockRecord(SomeHeader(), testing::RandomBytes(20, 1));
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    auto damaged = bytes;
    damaged[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ(ParseBlockRecord(damaged).status().code(), absl::StatusCode::kDataLoss) << bit;
  }
}

TEST(BlockFormatTest, EveryTruncationAndEveryExtraByteIsFound) {
  auto bytes = EncodeBlockRecord(SomeHeader(), testing::RandomBytes(20, 1));
  for (size_t size = 0; size < bytes.size(); ++size) {
    const ByteSpan cut = ByteSpan(bytes).first(size);
    EXPECT_EQ(ParseBlockRecord(cut).status().code(), absl::StatusCode::kDataLoss) << size;
  }
  bytes.push_back(std::byte{0});
  EXPECT_EQ(ParseBlockRecord(bytes).status().code(), absl::StatusCode::kDataLoss);
}

void Reseal(std::vector<std::byte>& bytes) {
  const uint32_t crc = common::Crc32c(ByteSpan(bytes).first(bytes.size() - 4));
  std::memcpy(bytes.data() + bytes.size() - 4, &crc, 4);
}

TEST(BlockFormatTest, AFutureVersionIsToldApartFromDamage) {
  auto bytes = EncodeBlockRecord(SomeHeader(), {});
  bytes[4] = std::byte{2};
  Reseal(bytes);
  EXPECT_EQ(ParseBlockRecord(bytes).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(BlockFormatTest, SoundChecksumsDoNotExcuseNonsense) {
  const auto good = EncodeBlockRecord(SomeHeader(), testing::RandomBytes(20, 1));
  // Every field after the codec, set to all ones: none may pass, none may crash.
  for (size_t at = 8; at + 4 <= 40; ++at) {
    auto bytes = good;
    std::memset(bytes.data() + at, 0xff, 4);
    Reseal(bytes);
    const auto record = ParseBlockRecord(bytes);
    EXPECT_FALSE(record.ok() && CheckBlock(record->header, Expected(SomeHeader())).ok()) << at;
  }
}

TEST(BlockFormatTest, AnotherBlockIsRefused) {
  const BlockHeader wanted = SomeHeader();
  const auto refused = [&](auto change) {
    BlockHeader header = SomeHeader();
    change(header);
    return CheckBlock(header, Expected(wanted)).code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_FALSE(refused([](BlockHeader&) {}));
  EXPECT_TRUE(refused([](BlockHeader& h) { h.root.hash.lo ^= 1; }));
  EXPECT_TRUE(refused([](BlockHeader& h) { h.parent.hash.hi ^= 1; }));
  EXPECT_TRUE(refused([](BlockHeader& h) { h.key.hash.hi ^= 1; }));
  EXPECT_TRUE(refused([](BlockHeader& h) { h.plane = 1; }));
  EXPECT_TRUE(refused([](BlockHeader& h) { h.shape.layers = 1; }));
  EXPECT_TRUE(refused([](BlockHeader& h) { h.num_tokens = 2; }));
  EXPECT_TRUE(refused([](BlockHeader& h) { h.tokens[1] = 9; }));
}

TEST(BlockFormatTest, GoldenBytes) {
  const std::vector<std::byte> payload = testing::RandomBytes(16, 5);
  const auto bytes = EncodeBlockRecord(SomeHeader(), payload);
  EXPECT_EQ(bytes, testing::ReadGolden("kv_block.hex")) << testing::ToGolden(bytes);
}

}  // namespace
}  // namespace loopserve::kvstore
