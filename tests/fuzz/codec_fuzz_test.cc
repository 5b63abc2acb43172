// Arbitrary bytes as block records and as codec payloads: any answer but a crash or an overrun.
#include <gtest/gtest.h>

#include <random>

#include "common/checksum.h"
#include "kvstore/block_format.h"
#include "kvstore/codec/codec.h"
#include "tests/support/kv_bytes.h"

namespace loopserve::kvstore {
namespace {

std::vector<std::byte> Mutate(std::vector<std::byte> bytes, std::mt19937& random) {
  const int changes = 1 + static_cast<int>(random() % 8);
  for (int i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = random() % bytes.size();
    switch (random() % 4) {
      case 0:
        bytes[at] = static_cast<std::byte>(random());
        break;
      case 1:
        bytes.resize(at);
        break;
      case 2:
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), static_cast<std::byte>(random()));
        break;
      default:
        for (size_t j = at; j < std::min(at + 4, bytes.size()); ++j) bytes[j] = std::byte{0xff};
    }
  }
  return bytes;
}

void Reseal(std::vector<std::byte>& bytes) {
  if (bytes.size() < 4) return;
  const uint32_t crc = common::Crc32c(ByteSpan(bytes).first(bytes.size() - 4));
  std::memcpy(bytes.data() + bytes.size() - 4, &crc, 4);
}

TEST(CodecFuzzTest, MutatedRecordsNeverPassAsTheBlock) {
  const KvShape shape = testing::SmallShape();
  const BlockHeader header{.codec = 1,
                           .shape = shape,
                           .root = {common::Hash128{1, 2}},
                           .parent = {common::Hash128{3, 4}},
                           .key = {common::Hash128{5, 6}},
                           .num_tokens = 4,
                           .tokens = {1, 2, 3, 4}};
  const auto payload = testing::RandomBlock(shape, 1);
  const auto good = EncodeBlockRecord(header, payload);
  std::mt19937 random(42);
  std::vector<std::byte> out(shape.block_bytes());
  for (int i = 0; i < 20000; ++i) {
    auto bytes = Mutate(good, random);
    const bool resealed = random() % 2 == 0;
    if (resealed) Reseal(bytes);
    const auto record = ParseBlockRecord(bytes);
    if (!record.ok()) continue;
    if (!resealed) {
      EXPECT_EQ(bytes, good);
    }
    const Codec* codec = FindCodec(record->header.codec);
    if (codec == nullptr || !(record->header.shape == shape)) continue;
    const ByteSpan planes[] = {record->payload};
    codec->Decode(shape, record->header.num_tokens, planes, out).IgnoreError();
  }
}

TEST(CodecFuzzTest, ArbitraryPayloadsAreDecodedOrRefused) {
  std::mt19937 random(43);
  for (const Codec* codec : AllCodecs()) {
    for (int i = 0; i < 10000; ++i) {
      KvShape shape = testing::SmallShape();
      shape.dtype = kKvDtypes[i % 4];
      std::vector<std::byte> out(shape.block_bytes());
      const auto payload = testing::RandomBytes(random() % (2 * shape.block_bytes()), random());
      const ByteSpan planes[] = {payload, payload};
      const auto tokens = static_cast<int32_t>(random() % 6) - 1;
      codec->Decode(shape, tokens, std::span(planes).first(random() % 3), out).IgnoreError();
    }
  }
}

}  // namespace
}  // namespace loopserve::kvstore
