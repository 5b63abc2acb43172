#include "worker/model/decoder_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/gguf_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::GgufWriter;
using ::loopserve::testing::IsOk;
using ::loopserve::testing::MakeTinyModel;
using ::loopserve::testing::Renamed;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::TinyModelSpec;
using ::loopserve::testing::Without;
using ::loopserve::testing::WithValue;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

constexpr auto kBad = absl::StatusCode::kInvalidArgument;

absl::Status ConfigStatus(const Bytes& bytes) {
  const auto file = GgufFile::Parse(bytes);
  return file.ok() ? ReadModelConfig(**file).status() : file.status();
}

ModelConfig ConfigOf(const TinyModelSpec& spec) {
  const Bytes bytes = MakeTinyModel(spec);
  return *ReadModelConfig(**GgufFile::Parse(bytes));
}

Bytes Gqa(std::function<void(GgufWriter&)> add = nullptr) {
  TinyModelSpec spec = *FindPreset("gqa");
  spec.add = std::move(add);
  return MakeTinyModel(spec);
}

TEST(DecoderConfigTest, ReadsWhatTheFileSays) {
  const ModelConfig config = ConfigOf(*FindPreset("gqa"));
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.name, "tiny gqa");
  EXPECT_EQ(config.layers, 2);
  EXPECT_EQ(config.hidden, 96);
  EXPECT_EQ(config.q_heads, 6);
  EXPECT_EQ(config.kv_heads, 3);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.ffn, 160);
  EXPECT_EQ(config.vocab, 279);
  EXPECT_EQ(config.context_tokens, 512);
  EXPECT_FLOAT_EQ(config.norm_eps, 1e-5F);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_TRUE(config.rope.interleaved);
  EXPECT_EQ(config.rope.inv_freq.size(), 8U);
  EXPECT_FALSE(ConfigOf(*FindPreset("untied")).tied_embeddings);
  const ModelConfig odd = ConfigOf(*FindPreset("odd"));
  EXPECT_EQ(odd.head_dim, 24);  // not hidden / heads
  EXPECT_EQ(odd.vocab, 293);
  const kvstore::KvShape shape = KvShapeOf(config, kvstore::KvDtype::kBf16, 32);
  EXPECT_EQ(shape.block_bytes(), 2U * 2 * 3 * 32 * 16 * 2);
}

TEST(DecoderConfigTest, NamesAMissingKey) {
  for (const absl::string_view key :
       {"llama.block_count", "llama.context_length", "llama.embedding_length",
        "llama.feed_forward_length", "llama.attention.layer_norm_rms_epsilon",
        "general.architecture"}) {
    EXPECT_THAT(ConfigStatus(Without(Gqa(), key)), StatusIs(kBad, HasSubstr(std::string(key))));
  }
}

TEST(DecoderConfigTest, TakesAsManyKvHeadsAsHeadsWhenTheKeyIsAbsent) {
  const Bytes bytes = Without(MakeTinyModel(*FindPreset("mha")), "llama.attention.head_count_kv");
  EXPECT_THAT(ConfigStatus(bytes), IsOk());
}

TEST(DecoderConfigTest, RefusesValuesOutOfRange) {
  const auto with = [](const std::string& key, auto value) {
    return ConfigStatus(WithValue(Gqa(), key, value));
  };
  for (const uint32_t value : {0U, 1U << 31, ~0U}) {
    for (const std::string key : {"llama.block_count", "llama.context_length",
                                  "llama.embedding_length", "llama.feed_forward_length",
                                  "llama.attention.head_count_kv", "llama.rope.dimension_count"}) {
      EXPECT_THAT(with(key, value), StatusIs(kBad, HasSubstr(key))) << value;
    }
  }
  EXPECT_THAT(with("llama.attention.head_count_kv", 4U), StatusIs(kBad, HasSubstr("multiple")));
  EXPECT_THAT(with("llama.attention.head_count_kv", 9U), StatusIs(kBad));
  EXPECT_THAT(with("llama.embedding_length", 97U), StatusIs(kBad, HasSubstr("multiple")));
  EXPECT_THAT(with("llama.attention.layer_norm_rms_epsilon", 0.0F), StatusIs(kBad));
  EXPECT_THAT(with("llama.attention.layer_norm_rms_epsilon", -1.0F), StatusIs(kBad));
  EXPECT_THAT(with("llama.rope.freq_base", 0.0F), StatusIs(kBad));
}

TEST(DecoderConfigTest, RefusesATokenizerOfAnotherSize) {
  EXPECT_THAT(ConfigStatus(Gqa([](GgufWriter& w) { w.AddU32("llama.vocab_size", 280); })),
              StatusIs(kBad, HasSubstr("vocab_size")));
  TinyModelSpec spec = *FindPreset("gqa");
  Bytes bytes = MakeTinyModel(spec);
  // The tokenizer's list under another name, and a shorter one instead.
  bytes = Without(bytes, "tokenizer.ggml.tokens");
  EXPECT_THAT(ConfigStatus(bytes), IsOk());
  spec.add = [](GgufWriter& w) {
    w.AddStrings("tokenizer.ggml.tokenz", std::vector<std::string>{"a"});
  };
  bytes = Without(MakeTinyModel(spec), "tokenizer.ggml.tokens");
  bytes = Renamed(bytes, "tokenizer.ggml.tokenz", "tokenizer.ggml.tokens");
  EXPECT_THAT(ConfigStatus(bytes), StatusIs(kBad, HasSubstr("tokenizer.ggml.tokens has 1")));
}

}  // namespace
}  // namespace loopserve::worker
