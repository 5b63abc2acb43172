#include "worker/model/metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/gguf_writer.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::GgufWriter;
using ::loopserve::testing::IsOk;
using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

struct Parsed {
  explicit Parsed(const std::function<void(GgufWriter&)>& write) {
    GgufWriter writer;
    write(writer);
    bytes = writer.Build();
    auto parsed = GgufFile::Parse(bytes);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    file = *std::move(parsed);
  }
  Metadata metadata() const { return {*file, "llama"}; }
  absl::StatusOr<RopeSpec> Rope(int32_t head_dim = 8, int32_t context = 1024) const {
    return ReadRope(metadata(), head_dim, context, true);
  }
  std::vector<std::byte> bytes;
  std::unique_ptr<GgufFile> file;
};

TEST(MetadataTest, ReadsNumbersInTheirRangeAndNamesTheKey) {
  const Parsed parsed([](GgufWriter& w) {
    w.AddU32("llama.block_count", 7);
    w.AddF32("llama.eps", 0.5F);
    w.AddF32("llama.nan", std::numeric_limits<float>::quiet_NaN());
    w.AddString("llama.text", "x");
  });
  const Metadata m = parsed.metadata();
  EXPECT_EQ(m.Key("block_count"), "llama.block_count");
  EXPECT_TRUE(m.Has("block_count"));
  EXPECT_EQ(*m.Int("block_count", 1, 7), 7);
  EXPECT_EQ(*m.IntOr("absent", 3, 0, 9), 3);
  EXPECT_EQ(*m.IntOr("block_count", 3, 0, 9), 7);
  EXPECT_EQ(*m.Float("eps", 0, 1), 0.5);
  EXPECT_EQ(*m.FloatOr("absent", 0.25, 0, 1), 0.25);
  const auto bad = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(m.Int("block_count", 8, 9), StatusIs(bad, HasSubstr("llama.block_count is 7")));
  EXPECT_THAT(m.Int("absent", 0, 1), StatusIs(bad, HasSubstr("llama.absent")));
  EXPECT_THAT(m.Int("text", 0, 1), StatusIs(bad, HasSubstr("llama.text")));
  EXPECT_THAT(m.Float("absent", 0, 1), StatusIs(bad, HasSubstr("llama.absent")));
  EXPECT_THAT(m.Float("nan", 0, 1), StatusIs(bad, HasSubstr("llama.nan")));
  EXPECT_THAT(m.FloatOr("eps", 0, 1, 2), StatusIs(bad));
}

TEST(RopeTest, IsPlainByDefault) {
  const auto spec = Parsed([](GgufWriter&) {}).Rope();
  ASSERT_THAT(spec, IsOk());
  ASSERT_EQ(spec->inv_freq.size(), 4U);
  for (int i = 0; i < 4; ++i) {
    EXPECT_DOUBLE_EQ(spec->inv_freq[static_cast<size_t>(i)], std::pow(10000.0, -i / 4.0));
  }
  EXPECT_TRUE(spec->interleaved);
  EXPECT_EQ(spec->scale, 1);
  EXPECT_EQ(spec->max_positions, 1024);
}

TEST(RopeTest, RotatesFewerDimensionsWhenTheFileSaysSo) {
  const auto spec = Parsed([](GgufWriter& w) {
                      w.AddU32("llama.rope.dimension_count", 4);
                      w.AddF32("llama.rope.freq_base", 100);
                    }).Rope();
  ASSERT_THAT(spec, IsOk());
  EXPECT_THAT(spec->inv_freq, ::testing::ElementsAre(1, ::testing::DoubleEq(0.1)));
}

TEST(RopeTest, ScalesLinearlyByEitherKey) {
  for (const absl::string_view key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    const auto spec = Parsed([&](GgufWriter& w) { w.AddF32(key, 4); }).Rope();
    ASSERT_THAT(spec, IsOk());
    EXPECT_DOUBLE_EQ(spec->inv_freq[0], 0.25);
    EXPECT_DOUBLE_EQ(spec->inv_freq[2], 0.0025);
  }
  const auto none = Parsed([](GgufWriter& w) {
                      w.AddString("llama.rope.scaling.type", "none");
                      w.AddF32("llama.rope.scaling.factor", 4);
                    }).Rope();
  ASSERT_THAT(none, IsOk());
  EXPECT_EQ(none->inv_freq[0], 1);
}

TEST(RopeTest, DividesByTheFrequencyFactors) {
  const auto spec = Parsed([](GgufWriter& w) {
                      const float factors[] = {1, 2, 4, 8};
                      w.AddTensor("rope_freqs.weight", std::vector<int64_t>{4}, 0,
                                  std::as_bytes(std::span(factors)));
                    }).Rope();
  ASSERT_THAT(spec, IsOk());
  EXPECT_DOUBLE_EQ(spec->inv_freq[2], 0.01 / 4);
}

// 64 dimensions, base 10000, factor 4 from a trained context of 2048: pair_of(32 turns) = 8.06...,
// pair_of(1 turn) = 20.10...; so pairs up to 8 stay and pairs from 21 on are divided by 4.
TEST(RopeTest, BlendsByYarn) {
  const auto spec = Parsed([](GgufWriter& w) {
                      w.AddString("llama.rope.scaling.type", "yarn");
                      w.AddF32("llama.rope.scaling.factor", 4);
                      w.AddU32("llama.rope.scaling.original_context_length", 2048);
                    }).Rope(64, 8192);
  ASSERT_THAT(spec, IsOk());
  EXPECT_DOUBLE_EQ(spec->scale, 1 + 0.1 * std::log(4.0));
  const auto ratio = [&](int i) {
    return spec->inv_freq[static_cast<size_t>(i)] / std::pow(10000.0, -i / 32.0);
  };
  EXPECT_DOUBLE_EQ(ratio(0), 1);
  EXPECT_DOUBLE_EQ(ratio(8), 1);
  EXPECT_NEAR(ratio(12), 1 - 0.75 * 4 / 13, 1e-12);
  EXPECT_DOUBLE_EQ(ratio(21), 0.25);
  EXPECT_DOUBLE_EQ(ratio(31), 0.25);
}

TEST(RopeTest, RefusesWhatItCannotCompute) {
  const auto bad = absl::StatusCode::kInvalidArgument;
  const auto with = [](const std::function<void(GgufWriter&)>& write) {
    return Parsed(write).Rope().status();
  };
  EXPECT_THAT(with([](GgufWriter& w) { w.AddU32("llama.rope.dimension_count", 7); }),
              StatusIs(bad, HasSubstr("odd")));
  EXPECT_THAT(with([](GgufWriter& w) { w.AddU32("llama.rope.dimension_count", 10); }),
              StatusIs(bad));
  EXPECT_THAT(with([](GgufWriter& w) { w.AddF32("llama.rope.freq_base", 0); }), StatusIs(bad));
  EXPECT_THAT(with([](GgufWriter& w) { w.AddF32("llama.rope.scaling.factor", -1); }),
              StatusIs(bad));
  EXPECT_THAT(with([](GgufWriter& w) {
                w.AddString("llama.rope.scaling.type", "yarn");
                w.AddF32("llama.rope.scaling.factor", 0.5F);
              }),
              StatusIs(bad));
  EXPECT_THAT(with([](GgufWriter& w) { w.AddString("llama.rope.scaling.type", "longrope"); }),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("longrope")));
  EXPECT_THAT(with([](GgufWriter& w) {
                const float factors[] = {1, 2, 4};
                w.AddTensor("rope_freqs.weight", std::vector<int64_t>{3}, 0,
                            std::as_bytes(std::span(factors)));
              }),
              StatusIs(bad, HasSubstr("rope_freqs")));
  EXPECT_THAT(with([](GgufWriter& w) {
                const float factors[] = {1, 2, 0, 4};
                w.AddTensor("rope_freqs.weight", std::vector<int64_t>{4}, 0,
                            std::as_bytes(std::span(factors)));
              }),
              StatusIs(bad, HasSubstr("rope_freqs")));
}

}  // namespace
}  // namespace loopserve::worker
