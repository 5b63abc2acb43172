#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>

#include "tests/support/gguf_writer.h"
#include "tests/support/model_runner.h"
#include "tests/support/sampling_rows.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/backend/row_sampler.h"
#include "worker/model/model.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::GgufWriter;
using ::loopserve::testing::IsOk;
using ::loopserve::testing::MakeTinyModel;
using ::loopserve::testing::ModelRunner;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::TinyModelSpec;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

constexpr auto kBad = absl::StatusCode::kInvalidArgument;
constexpr auto kMissing = absl::StatusCode::kUnimplemented;

struct Loaded {
  explicit Loaded(const TinyModelSpec& spec) : bytes(MakeTinyModel(spec)) {
    file = *GgufFile::Parse(bytes);
    config = *ReadModelConfig(*file);
  }
  std::unique_ptr<ModelRunner> Runner(const ModelRunner::Options& options) const {
    auto runner = ModelRunner::Create(*file, config, options);
    EXPECT_THAT(runner, IsOk());
    return *std::move(runner);
  }
  Bytes bytes;
  std::unique_ptr<GgufFile> file;
  ModelConfig config;
};

absl::Status ConfigStatus(const Bytes& bytes) {
  const auto file = GgufFile::Parse(bytes);
  return file.ok() ? ReadModelConfig(**file).status() : file.status();
}

Bytes Gqa(std::function<void(GgufWriter&)> add = nullptr) {
  TinyModelSpec spec = *FindPreset("gqa");
  spec.add = std::move(add);
  return MakeTinyModel(spec);
}

std::vector<common::TokenId> SomeTokens(size_t count, const ModelConfig& config) {
  std::vector<common::TokenId> tokens(count);
  for (size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<common::TokenId>((i * 37 + 11) % static_cast<size_t>(config.vocab));
  }
  return tokens;
}

TEST(LlamaConfigTest, RefusesTensorsThatDoNotFitTheMetadata) {
  EXPECT_THAT(ConfigStatus(testing::WithValue(Gqa(), "llama.feed_forward_length", 161U)),
              StatusIs(kBad, HasSubstr("ffn_gate")));
  EXPECT_THAT(ConfigStatus(testing::WithValue(Gqa(), "llama.block_count", 3U)),
              StatusIs(kBad, HasSubstr("lacks the tensor 'blk.2.")));
  EXPECT_THAT(ConfigStatus(testing::WithValue(Gqa(), "llama.block_count", 1U)),
              StatusIs(kBad, HasSubstr("does not know")));
  EXPECT_THAT(ConfigStatus(Gqa([](GgufWriter& w) {
                w.AddTensor("blk.0.attn_q_norm.weight", std::vector<int64_t>{16}, 0, Bytes(64));
              })),
              StatusIs(kBad, HasSubstr("attn_q_norm")));
  EXPECT_THAT(ConfigStatus(Gqa([](GgufWriter& w) {
                w.AddTensor("output.weight", std::vector<int64_t>{96, 2}, 0, Bytes(768));
              })),
              StatusIs(kBad, HasSubstr("output.weight")));
  EXPECT_THAT(ConfigStatus(testing::Without(Gqa(), "token_embd.weight")),
              StatusIs(kBad, HasSubstr("token_embd")));
}

TEST(LlamaConfigTest, SaysWhatIsNotImplemented) {
  const auto with = [](const std::string& key, uint32_t value) {
    return ConfigStatus(Gqa([&](GgufWriter& w) { w.AddU32(key, value); }));
  };
  EXPECT_THAT(with("llama.expert_count", 8), StatusIs(kMissing, HasSubstr("expert_count")));
  EXPECT_THAT(with("llama.expert_count", 0), IsOk());
  EXPECT_THAT(with("llama.attention.sliding_window", 64), StatusIs(kMissing));
  EXPECT_THAT(with("llama.attention.sliding_window", 4096), IsOk());
  EXPECT_THAT(with("llama.attention.value_length", 8), StatusIs(kMissing));
  EXPECT_THAT(with("llama.logit_scale", 8), StatusIs(kMissing, HasSubstr("logit_scale")));
  TinyModelSpec other = *FindPreset("gqa");
  other.architecture = "mamba";
  EXPECT_THAT(ConfigStatus(MakeTinyModel(other)),
              StatusIs(kMissing, AllOf(HasSubstr("'mamba'"), HasSubstr("llama"))));
}

TEST(LlamaConfigTest, RotatesNeighbours) {
  EXPECT_TRUE(Loaded(*FindPreset("gqa")).config.rope.interleaved);
  EXPECT_EQ(Loaded(*FindPreset("odd")).config.rope.inv_freq.size(), 5U);
}

TEST(LlamaLoadTest, RefusesMoreRanksThanQueryHeadsAndOtherImpossibleShards) {
  const Loaded model(*FindPreset("gqa"));
  const auto backend = *CreateBackend({.name = "reference"});
  const auto load = [&](const ShardSpec& shard, const ModelOptions& options) {
    return LoadModel(*model.file, model.config, shard, *backend, options).status();
  };
  EXPECT_THAT(load({0, 3}, {}), IsOk());
  EXPECT_THAT(load({5, 6}, {}), IsOk());
  EXPECT_THAT(load({0, 7}, {}), StatusIs(kBad, HasSubstr("6 query heads")));
  EXPECT_THAT(load({3, 3}, {}), StatusIs(kBad));
  EXPECT_THAT(load({-1, 3}, {}), StatusIs(kBad));
  EXPECT_THAT(load({0, 0}, {}), StatusIs(kBad));
  EXPECT_THAT(load({0, 1}, {.max_step_tokens = 0}), StatusIs(kBad));
  EXPECT_THAT(load({0, 1}, {.max_logit_rows = 0}), StatusIs(kBad));
  EXPECT_THAT(load({0, 1}, {.max_positions = 512}), IsOk());
  EXPECT_THAT(load({0, 1}, {.max_positions = 513}), StatusIs(kBad, HasSubstr("512")));
}

TEST(LlamaLoadTest, PredictsItsMemory) {
  const Loaded model(*FindPreset("untied"));
  const auto backend = *CreateBackend({.name = "reference"});
  const ModelOptions options = {.max_step_tokens = 8, .max_logit_rows = 2, .max_positions = 100};
  const MemoryEstimate whole = EstimateMemory(*model.file, model.config, {0, 1}, options, *backend);
  const auto loaded = LoadModel(*model.file, model.config, {0, 1}, *backend, options);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(whole.weights_bytes, (*loaded)->resident_bytes());  // F32 stays as it is
  // 8 rows of 2x96 + 96 + 48 + 48 + 96 + 160 + 160 + 96, 2 of 96 + 96 + 279; 100 angles of 8 pairs.
  EXPECT_EQ(whole.scratch_bytes, 4U * (8 * 896 + 2 * 471 + 100 * 16));
  const auto held_again = [&](int ranks) {
    size_t sum = 0;
    for (int r = 0; r < ranks; ++r) {
      sum += EstimateMemory(*model.file, model.config, {r, ranks}, options, *backend).weights_bytes;
    }
    return (sum - whole.weights_bytes) / sizeof(float);
  };
  // The norms; and with five ranks two of the three heads' keys and values.
  EXPECT_EQ(held_again(3), 2U * (2 * 3 + 1) * 96);
  EXPECT_EQ(held_again(5), 4U * (2 * 3 + 1) * 96 + 3U * 2 * 2 * 16 * 96);
}

TEST(LlamaLoadTest, TakesWhatItPredictedOnEveryRank) {
  const Loaded model(*FindPreset("mqa"));
  const ModelOptions options = {.max_step_tokens = 8, .max_logit_rows = 2, .max_positions = 100};
  const auto backend = *CreateBackend({.name = "reference"});
  for (int r = 0; r < 3; ++r) {
    const auto loaded = LoadModel(*model.file, model.config, {r, 3}, *backend, options);
    ASSERT_THAT(loaded, IsOk());
    EXPECT_EQ((*loaded)->resident_bytes(),
              EstimateMemory(*model.file, model.config, {r, 3}, options, *backend).weights_bytes);
  }
}

class LlamaForwardTest : public ::testing::TestWithParam<std::string> {
 protected:
  const Loaded model_{*FindPreset(GetParam())};
};

TEST_P(LlamaForwardTest, ChunksDoNotChangeABit) {
  const auto tokens = SomeTokens(45, model_.config);
  const auto runner = model_.Runner({});
  const auto whole = runner->AppendAll(0, tokens, 512);
  ASSERT_THAT(whole, IsOk());
  ASSERT_EQ(whole->size(), 45U * static_cast<size_t>(model_.config.vocab));
  for (const int64_t chunk : {1, 7, 44}) {
    runner->Clear(0);
    const auto chunked = runner->AppendAll(0, tokens, chunk);
    ASSERT_THAT(chunked, IsOk());
    EXPECT_TRUE(*chunked == *whole) << "chunks of " << chunk;
  }
}

TEST_P(LlamaForwardTest, RanksDoNotChangeABit) {
  const auto tokens = SomeTokens(20, model_.config);
  const auto alone = model_.Runner({})->AppendAll(0, tokens, 9);
  ASSERT_THAT(alone, IsOk());
  for (int tp = 2; tp <= model_.config.q_heads; ++tp) {
    const auto together = model_.Runner({.tp = tp})->AppendAll(0, tokens, 9);
    ASSERT_THAT(together, IsOk());
    EXPECT_TRUE(*together == *alone) << tp << " ranks";
  }
}

TEST_P(LlamaForwardTest, TheFirstRankChoosesFromTheLogits) {
  const ModelRunner::Part part{0, SomeTokens(20, model_.config)};
  std::vector<int32_t> rows;
  SamplingPlan plan;
  for (int32_t row = 1; row < 20; row += 2) {
    rows.push_back(row);
    plan.rows.push_back(testing::AnySampling(static_cast<uint32_t>(row)));
  }
  auto logits = model_.Runner({})->Append({&part, 1}, rows);
  ASSERT_THAT(logits, IsOk());
  std::vector<RowChoice> expected(rows.size());
  const int64_t vocab = model_.config.vocab;
  ASSERT_THAT(RowSampler().Sample({logits->data(), static_cast<int64_t>(rows.size()), vocab, vocab},
                                  plan.view(), expected),
              IsOk());
  for (int tp = 1; tp <= model_.config.kv_heads; ++tp) {
    const auto choices = model_.Runner({.tp = tp})->Choose({&part, 1}, rows, plan.view());
    ASSERT_THAT(choices, IsOk());
    ASSERT_EQ(choices->size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(testing::Difference(plan.rows[i], (*choices)[i], expected[i]), "") << tp;
    }
  }
}

// Sums that ranks share are rounded in another order, and that is all.
TEST_P(LlamaForwardTest, RanksThatShareInputsAgreeWithinRounding) {
  const auto tokens = SomeTokens(20, model_.config);
  const auto alone = model_.Runner({.shard_inputs = true})->AppendAll(0, tokens, 9);
  ASSERT_THAT(alone, IsOk());
  EXPECT_TRUE(*alone == *model_.Runner({})->AppendAll(0, tokens, 9)) << "one rank shares nothing";
  for (int tp = 2; tp <= model_.config.q_heads; ++tp) {
    const auto shared = model_.Runner({.tp = tp, .shard_inputs = true})->AppendAll(0, tokens, 9);
    ASSERT_THAT(shared, IsOk());
    EXPECT_FALSE(*shared == *alone) << "nothing was shared";
    EXPECT_THAT(*shared, ::testing::Pointwise(::testing::FloatNear(2e-4f), *alone));
  }
}

TEST_P(LlamaForwardTest, SequencesOfOneStepDoNotMeet) {
  const auto tokens = SomeTokens(30, model_.config);
  const std::vector<common::TokenId> a(tokens.begin(), tokens.begin() + 18);
  const std::vector<common::TokenId> b(tokens.begin() + 18, tokens.end());
  const auto alone = model_.Runner({});
  const auto a_alone = alone->AppendAll(0, a, 512);
  alone->Clear(0);
  const auto b_alone = alone->AppendAll(0, b, 512);
  ASSERT_THAT(a_alone, IsOk());
  ASSERT_THAT(b_alone, IsOk());

  const auto shared = model_.Runner({.sequences = 2});
  const std::vector<ModelRunner::Part> parts = {{1, b}, {0, a}};
  const std::vector<int32_t> rows = {11, 29};
  const auto logits = shared->Append(parts, rows);
  ASSERT_THAT(logits, IsOk());
  const auto vocab = static_cast<ptrdiff_t>(model_.config.vocab);
  EXPECT_TRUE(std::equal(logits->begin(), logits->begin() + vocab, b_alone->end() - vocab));
  EXPECT_TRUE(std::equal(logits->begin() + vocab, logits->end(), a_alone->end() - vocab));
}

TEST_P(LlamaForwardTest, AskingForFewLogitsDoesNotChangeThem) {
  const auto tokens = SomeTokens(12, model_.config);
  const auto runner = model_.Runner({});
  const auto all = runner->AppendAll(0, tokens, 512);
  ASSERT_THAT(all, IsOk());
  runner->Clear(0);
  const ModelRunner::Part head{0, {tokens.begin(), tokens.begin() + 5}};
  const ModelRunner::Part tail{0, {tokens.begin() + 5, tokens.end()}};
  const auto none = runner->Append({&head, 1}, {});
  ASSERT_THAT(none, IsOk());
  EXPECT_TRUE(none->empty());
  const std::vector<int32_t> rows = {0, 3, 6};
  const auto some = runner->Append({&tail, 1}, rows);
  ASSERT_THAT(some, IsOk());
  const auto vocab = static_cast<size_t>(model_.config.vocab);
  ASSERT_EQ(some->size(), 3 * vocab);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto expected = all->begin() + static_cast<ptrdiff_t>((5 + rows[i]) * vocab);
    EXPECT_TRUE(std::equal(expected, expected + static_cast<ptrdiff_t>(vocab),
                           some->begin() + static_cast<ptrdiff_t>(i * vocab)));
  }
}

// Blocks of 32 and 256 inputs stay whole: the feed-forward is shared in blocks, and the heads where
// they fit, else by outputs as ever.
TEST(LlamaSharedInputsTest, FollowTheBlocksOfTheFile) {
  TinyModelSpec spec = *FindPreset("gqa");
  spec.hidden = 256;
  spec.ffn = 768;
  spec.q_heads = 8;
  spec.kv_heads = 4;
  spec.head_dim = 64;
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_K}) {
    const Loaded model(testing::WithType(spec, type));
    const auto tokens = SomeTokens(12, model.config);
    const auto alone = model.Runner({})->AppendAll(0, tokens, 9);
    ASSERT_THAT(alone, IsOk());
    for (const int tp : {2, 3, 4, 6, 8}) {
      const auto shared = model.Runner({.tp = tp, .shard_inputs = true})->AppendAll(0, tokens, 9);
      ASSERT_THAT(shared, IsOk());
      EXPECT_THAT(*shared, ::testing::Pointwise(::testing::FloatNear(1e-3f), *alone));
    }
    // The same weights, once, and less to hold in between.
    const ModelOptions options = {.max_step_tokens = 8, .shard_inputs = true};
    size_t bytes = 0, alike = 0;
    const auto backend = *CreateBackend({.name = "reference"});
    const auto weights_of = [&](int rank, const ModelOptions& how) {
      return EstimateMemory(*model.file, model.config, {rank, 2}, how, *backend).weights_bytes;
    };
    for (int r = 0; r < 2; ++r) {
      bytes += weights_of(r, options);
      alike += weights_of(r, {.max_step_tokens = 8});
    }
    EXPECT_EQ(bytes, alike);
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, LlamaForwardTest,
                         ::testing::Values("gqa", "mha", "mqa", "untied", "odd", "biased", "nine"),
                         [](const auto& info) { return info.param; });

TEST(LlamaForwardRefusalTest, ChecksTheBatchBeforeItComputes) {
  const Loaded model(*FindPreset("gqa"));
  const auto runner = model.Runner({.max_step_tokens = 8});
  const ModelRunner::Part foreign{0, {1, 279}};
  EXPECT_THAT(runner->Append({&foreign, 1}, {}), StatusIs(kBad, HasSubstr("vocabulary")));
}

}  // namespace
}  // namespace loopserve::worker
