// What every codec of codecs.def promises: sizes, error bounds, partial blocks, damage, fixed
// bytes.
#include "kvstore/codec/codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/support/golden.h"
#include "tests/support/kv_bytes.h"

namespace loopserve::kvstore {
namespace {

class CodecTest : public ::testing::TestWithParam<const Codec*> {
 protected:
  const Codec& codec() { return *GetParam(); }

  std::vector<std::vector<std::byte>> Encode(const KvShape& shape, int32_t tokens, ByteSpan block) {
    std::vector<std::vector<std::byte>> planes;
    const absl::Status status =
        codec().Encode(shape, tokens, block, [&](size_t plane, ByteSpan payload) {
          EXPECT_EQ(plane, planes.size()) << "base first, in order";
          planes.emplace_back(payload.begin(), payload.end());
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(planes.size(), codec().planes().size());
    return planes;
  }

  absl::Status Decode(const KvShape& shape, int32_t tokens,
                      const std::vector<std::vector<std::byte>>& planes, size_t count,
                      MutableByteSpan block) {
    const std::vector<ByteSpan> views(planes.begin(),
                                      planes.begin() + static_cast<ptrdiff_t>(count));
    return codec().Decode(shape, tokens, views, block);
  }
};

const KvShape kShapes[] = {
    testing::SmallShape(),
    {.layers = 1, .kv_heads = 1, .head_dim = 1, .block_tokens = 1},
    {.layers = 3, .kv_heads = 2, .head_dim = 5, .block_tokens = 7},
    {.layers = 2, .kv_heads = 3, .head_dim = 64, .block_tokens = 32},
};

// The largest error of a value against the largest magnitude in its vector.
double RelativeError(const KvShape& shape, int32_t tokens, ByteSpan want, ByteSpan got) {
  const auto dim = static_cast<size_t>(shape.head_dim);
  double worst = 0;
  for (size_t vector = 0; vector < shape.block_bytes() / 2 / dim; ++vector) {
    if (vector % static_cast<size_t>(shape.block_tokens) >= static_cast<size_t>(tokens)) continue;
    double largest = 0;
    double error = 0;
    for (size_t i = vector * dim; i < (vector + 1) * dim; ++i) {
      uint16_t a = 0;
      uint16_t b = 0;
      std::memcpy(&a, want.data() + 2 * i, 2);
      std::memcpy(&b, got.data() + 2 * i, 2);
      largest = std::max(largest, std::abs(double{testing::Bf16ToFloat(a)}));
      error = std::max(error, std::abs(double{testing::Bf16ToFloat(a)} - testing::Bf16ToFloat(b)));
    }
    if (error > 0) worst = std::max(worst, largest > 0 ? error / largest : INFINITY);
  }
  return worst;
}

TEST_P(CodecTest, EveryPrefixOfPlanesIsWithinItsBound) {
  for (const KvShape& shape : kShapes) {
    const auto block = testing::RandomBlock(shape, 7);
    const auto planes = Encode(shape, shape.block_tokens, block);
    for (size_t count = 1; count <= planes.size(); ++count) {
      std::vector<std::byte> out(shape.block_bytes());
      ASSERT_TRUE(Decode(shape, shape.block_tokens, planes, count, out).ok());
      EXPECT_LE(RelativeError(shape, shape.block_tokens, block, out),
                codec().planes()[count - 1].max_relative_error);
    }
  }
}

TEST_P(CodecTest, SizesAreWithinWhatIsPromised) {
  const KvShape shape = kShapes[3];
  const auto planes = Encode(shape, shape.block_tokens, testing::RandomBlock(shape, 7));
  for (size_t plane = 0; plane < planes.size(); ++plane) {
    EXPECT_LE(planes[plane].size(), codec().MaxEncodedBytes(shape, plane));
    const double bits = 8.0 * static_cast<double>(planes[plane].size()) /
                        (static_cast<double>(shape.block_bytes()) / 2);
    EXPECT_LE(bits, codec().planes()[plane].bits_per_value);
  }
}

TEST_P(CodecTest, PartialBlocksLeaveTheRestAlone) {
  for (const KvShape& shape : kShapes) {
    for (int32_t tokens = 1; tokens <= shape.block_tokens; ++tokens) {
      const auto block = testing::RandomBlock(shape, static_cast<uint32_t>(tokens));
      const auto planes = Encode(shape, tokens, block);
      std::vector<std::byte> out(shape.block_bytes(), std::byte{0x5a});
      ASSERT_TRUE(Decode(shape, tokens, planes, planes.size(), out).ok());
      EXPECT_LE(RelativeError(shape, tokens, block, out),
                codec().planes().back().max_relative_error);
      for (size_t head = 0; head < shape.block_bytes() / shape.head_bytes(); ++head) {
        const size_t used = static_cast<size_t>(tokens) * static_cast<size_t>(shape.head_dim) * 2;
        for (size_t i = used; i < shape.head_bytes(); ++i) {
          ASSERT_EQ(out[head * shape.head_bytes() + i], std::byte{0x5a});
        }
      }
    }
  }
}

TEST_P(CodecTest, WrongLengthsAreDataLoss) {
  const KvShape shape = testing::SmallShape();
  const auto planes = Encode(shape, 3, testing::RandomBlock(shape, 7));
  std::vector<std::byte> out(shape.block_bytes());
  for (size_t plane = 0; plane < planes.size(); ++plane) {
    for (size_t size = 0; size < planes[plane].size(); ++size) {
      auto cut = planes;
      cut[plane].resize(size);
      EXPECT_EQ(Decode(shape, 3, cut, cut.size(), out).code(), absl::StatusCode::kDataLoss);
    }
    auto longer = planes;
    longer[plane].push_back(std::byte{0});
    EXPECT_EQ(Decode(shape, 3, longer, longer.size(), out).code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(Decode(shape, 3, planes, 0, out).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Decode(shape, 2, planes, planes.size(), out).code(), absl::StatusCode::kDataLoss);
}

TEST_P(CodecTest, WrongArgumentsAreRefused) {
  const KvShape shape = testing::SmallShape();
  const auto block = testing::RandomBlock(shape, 7);
  const auto nothing = [](size_t, ByteSpan) { return absl::OkStatus(); };
  for (const int32_t tokens : {-1, 0, shape.block_tokens + 1}) {
    EXPECT_EQ(codec().Encode(shape, tokens, block, nothing).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(codec().Encode(shape, 1, ByteSpan(block).first(10), nothing).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(CodecTest, AnErrorOfTheSinkEndsTheEncoding) {
  const KvShape shape = testing::SmallShape();
  int calls = 0;
  const absl::Status status =
      codec().Encode(shape, 1, testing::RandomBlock(shape, 7), [&](size_t, ByteSpan) {
        ++calls;
        return absl::ResourceExhaustedError("full");
      });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(calls, 1);
}

// The bytes of a codec are kept on disks: a change needs a new wire id.
TEST_P(CodecTest, GoldenBytes) {
  const KvShape shape = {.layers = 1, .kv_heads = 1, .head_dim = 4, .block_tokens = 2};
  const auto planes = Encode(shape, 2, testing::RandomBlock(shape, 3));
  std::vector<std::byte> all;
  for (const auto& plane : planes) all.insert(all.end(), plane.begin(), plane.end());
  EXPECT_EQ(all, testing::ReadGolden("codec_" + std::string(codec().name()) + ".hex"))
      << testing::ToGolden(all);
}

TEST(CodecTableTest, NamesAndWireIdsAreUniqueAndFound) {
  std::set<std::string> names;
  std::set<uint16_t> ids;
  for (const Codec* codec : AllCodecs()) {
    EXPECT_TRUE(names.insert(std::string(codec->name())).second);
    EXPECT_TRUE(ids.insert(codec->wire_id()).second);
    EXPECT_EQ(FindCodec(codec->name()), codec);
    EXPECT_EQ(FindCodec(codec->wire_id()), codec);
  }
  EXPECT_EQ(FindCodec("none"), nullptr);
  EXPECT_EQ(FindCodec(uint16_t{0}), nullptr);
}

INSTANTIATE_TEST_SUITE_P(All, CodecTest,
                         ::testing::ValuesIn(AllCodecs().begin(), AllCodecs().end()),
                         [](const auto& info) { return std::string(info.param->name()); });

}  // namespace
}  // namespace loopserve::kvstore
