#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>

#include "tests/support/gguf_writer.h"
#include "tests/support/model_runner.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
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

// Where the value of a key begins.
size_t ValueOf(const Bytes& bytes, const std::string& key) {
  const auto* const raw = reinterpret_cast<const std::byte*>(key.data());
  const auto it = std::search(bytes.begin(), bytes.end(), raw, raw + key.size());
  EXPECT_NE(it, bytes.end()) << key;
  return static_cast<size_t>(it - bytes.begin()) + key.size() + sizeof(uint32_t);
}

template <typename T>
Bytes WithValue(Bytes bytes, const std::string& key, T value) {
  std::memcpy(&bytes[ValueOf(bytes, key)], &value, sizeof(value));
  return bytes;
}

// The key (or tensor) under another name of the same length.
Bytes Renamed(Bytes bytes, const std::string& key) {
  bytes[ValueOf(bytes, key) - sizeof(uint32_t) - 1] = std::byte{'~'};
  return bytes;
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

TEST(LlamaConfigTest, ReadsWhatTheFileSays) {
  const ModelConfig config = Loaded(*FindPreset("gqa")).config;
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
  EXPECT_FALSE(Loaded(*FindPreset("untied")).config.tied_embeddings);
  const ModelConfig odd = Loaded(*FindPreset("odd")).config;
  EXPECT_EQ(odd.head_dim, 24);  // not hidden / heads
  EXPECT_EQ(odd.vocab, 293);
  const kvstore::KvShape shape = KvShapeOf(config, kvstore::KvDtype::kBf16, 32);
  EXPECT_EQ(shape.block_bytes(), 2U * 2 * 3 * 32 * 16 * 2);
}

TEST(LlamaConfigTest, NamesAMissingKey) {
  for (const absl::string_view key :
       {"llama.block_count", "llama.context_length", "llama.embedding_length",
        "llama.feed_forward_length", "llama.attention.layer_norm_rms_epsilon",
        "general.architecture"}) {
    EXPECT_THAT(ConfigStatus(Renamed(Gqa(), std::string(key))),
                StatusIs(kBad, HasSubstr(std::string(key))));
  }
}

TEST(LlamaConfigTest, TakesAsManyKvHeadsAsHeadsWhenTheKeyIsAbsent) {
  const Bytes bytes = Renamed(MakeTinyModel(*FindPreset("mha")), "llama.attention.head_count_kv");
  EXPECT_THAT(ConfigStatus(bytes), IsOk());
}

TEST(LlamaConfigTest, RefusesValuesOutOfRange) {
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

TEST(LlamaConfigTest, RefusesTensorsThatDoNotFitTheMetadata) {
  EXPECT_THAT(ConfigStatus(WithValue(Gqa(), "llama.feed_forward_length", 161U)),
              StatusIs(kBad, HasSubstr("ffn_gate")));
  EXPECT_THAT(ConfigStatus(WithValue(Gqa(), "llama.block_count", 3U)),
              StatusIs(kBad, HasSubstr("lacks the tensor 'blk.2.")));
  EXPECT_THAT(ConfigStatus(WithValue(Gqa(), "llama.block_count", 1U)),
              StatusIs(kBad, HasSubstr("does not know")));
  EXPECT_THAT(ConfigStatus(Gqa([](GgufWriter& w) {
                w.AddTensor("blk.0.attn_q_norm.weight", std::vector<int64_t>{16}, 0, Bytes(64));
              })),
              StatusIs(kBad, HasSubstr("attn_q_norm")));
  EXPECT_THAT(ConfigStatus(Gqa([](GgufWriter& w) {
                w.AddTensor("output.weight", std::vector<int64_t>{96, 2}, 0, Bytes(768));
              })),
              StatusIs(kBad, HasSubstr("output.weight")));
  EXPECT_THAT(ConfigStatus(Renamed(Gqa(), "token_embd.weight")),
              StatusIs(kBad, HasSubstr("token_embd")));
}

TEST(LlamaConfigTest, RefusesATokenizerOfAnotherSize) {
  EXPECT_THAT(ConfigStatus(Gqa([](GgufWriter& w) { w.AddU32("llama.vocab_size", 280); })),
              StatusIs(kBad, HasSubstr("vocab_size")));
  TinyModelSpec spec = *FindPreset("gqa");
  Bytes bytes = MakeTinyModel(spec);
  // The tokenizer's list under another name, and a shorter one instead.
  bytes = Renamed(bytes, "tokenizer.ggml.tokens");
  EXPECT_THAT(ConfigStatus(bytes), IsOk());
  spec.add = [](GgufWriter& w) {
    w.AddStrings("tokenizer.ggml.tokenz", std::vector<std::string>{"a"});
  };
  bytes = Renamed(MakeTinyModel(spec), "tokenizer.ggml.tokens");
  bytes[ValueOf(bytes, "tokenizer.ggml.tokenz") - sizeof(uint32_t) - 1] = std::byte{'s'};
  EXPECT_THAT(ConfigStatus(bytes), StatusIs(kBad, HasSubstr("tokenizer.ggml.tokens has 1")));
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

TEST(LlamaLoadTest, RefusesMoreRanksThanKvHeadsAndOtherImpossibleShards) {
  const Loaded model(*FindPreset("gqa"));
  const auto backend = *CreateBackend({.name = "reference"});
  const auto load = [&](const ShardSpec& shard, const ModelOptions& options) {
    return LoadModel(*model.file, model.config, shard, *backend, options).status();
  };
  EXPECT_THAT(load({0, 3}, {}), IsOk());
  EXPECT_THAT(load({0, 4}, {}), StatusIs(kBad, HasSubstr("3 KV heads")));
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
  const MemoryEstimate whole = EstimateMemory(*model.file, model.config, {0, 1}, options);
  const auto loaded = LoadModel(*model.file, model.config, {0, 1}, *backend, options);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(whole.weights_bytes, (*loaded)->resident_bytes());  // F32 stays as it is
  // 8 rows of 2x96 + 96 + 48 + 48 + 96 + 160 + 160 + 96, 2 of 96 + 96 + 279; 100 angles of 8 pairs.
  EXPECT_EQ(whole.scratch_bytes, 4U * (8 * 896 + 2 * 471 + 100 * 16));
  size_t sum = 0;
  for (int r = 0; r < 3; ++r) {
    sum += EstimateMemory(*model.file, model.config, {r, 3}, options).weights_bytes;
  }
  // Only the norms are held more than once.
  EXPECT_EQ(sum, whole.weights_bytes + 2 * (2 * 3 + 1) * 96 * sizeof(float));
}

TEST(SplitEvenlyTest, GivesTheFirstRanksOneMore) {
  EXPECT_EQ(SplitEvenly(3, {0, 2}).size(), 2);
  EXPECT_EQ(SplitEvenly(3, {1, 2}).size(), 1);
  for (int size = 1; size <= 5; ++size) {
    int64_t next = 0;
    for (int rank = 0; rank < size; ++rank) {
      const RowRange range = SplitEvenly(17, {rank, size});
      EXPECT_EQ(range.begin, next);
      next = range.end;
    }
    EXPECT_EQ(next, 17);
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
  for (int tp = 2; tp <= model_.config.kv_heads; ++tp) {
    const auto together = model_.Runner({.tp = tp})->AppendAll(0, tokens, 9);
    ASSERT_THAT(together, IsOk());
    EXPECT_TRUE(*together == *alone) << tp << " ranks";
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

INSTANTIATE_TEST_SUITE_P(Presets, LlamaForwardTest,
                         ::testing::Values("gqa", "mha", "mqa", "untied", "odd", "biased"),
                         [](const auto& info) { return info.param; });

class LlamaBatchTest : public ::testing::Test {
 protected:
  absl::Status Run() {
    return runner_->model()
        .Forward({.tokens = tokens_,
                  .positions = positions_,
                  .sequences = sequences_,
                  .logit_rows = logit_rows_},
                 arena_, *comms_[0])
        .status();
  }

  const Loaded model_{*FindPreset("gqa")};
  std::unique_ptr<ModelRunner> runner_ = model_.Runner({.max_step_tokens = 8});
  std::vector<std::unique_ptr<Communicator>> comms_ =
      CreateThreadCommunicators(1, absl::Seconds(10));
  kvstore::KvArena arena_ = runner_->pool().arena(0);
  std::vector<common::TokenId> tokens_ = {5, 6, 7};
  std::vector<int32_t> positions_ = {0, 1, 2};
  std::vector<AttentionSequence> sequences_ = {
      {.first_row = 0, .rows = 3, .kv_tokens = 3, .blocks = runner_->blocks(0)}};
  std::vector<int32_t> logit_rows_ = {2};
};

TEST_F(LlamaBatchTest, RunsASoundBatch) { EXPECT_THAT(Run(), IsOk()); }

TEST_F(LlamaBatchTest, RefusesTokensOutsideTheVocabulary) {
  for (const common::TokenId token : {-1, 279, 1 << 30}) {
    tokens_[1] = token;
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("vocabulary")));
  }
}

TEST_F(LlamaBatchTest, RefusesPositionsOutsideTheContext) {
  for (const int32_t position : {-1, 512}) {
    positions_[1] = position;
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("position")));
  }
  positions_.pop_back();
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("position")));
}

TEST_F(LlamaBatchTest, RefusesMoreRowsThanItWasLoadedFor) {
  tokens_.assign(9, 1);
  positions_.assign(9, 1);
  sequences_[0].rows = 9;
  sequences_[0].kv_tokens = 9;
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("exceeds 8")));
  tokens_.clear();
  positions_.clear();
  EXPECT_THAT(Run(), StatusIs(kBad));
}

TEST_F(LlamaBatchTest, RefusesLogitRowsOutOfOrderOrOutside) {
  for (const std::vector<int32_t>& rows : {std::vector<int32_t>{3}, {-1}, {1, 1}, {2, 0}}) {
    logit_rows_ = rows;
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("logit rows")));
  }
}

TEST_F(LlamaBatchTest, RefusesSequencesThatDoNotCoverTheStep) {
  const AttentionSequence sound = sequences_[0];
  for (const auto& change :
       {+[](AttentionSequence& s) { s.first_row = 1; }, +[](AttentionSequence& s) { s.rows = 2; },
        +[](AttentionSequence& s) { s.rows = 4; }, +[](AttentionSequence& s) { s.rows = 0; },
        +[](AttentionSequence& s) { s.kv_tokens = 2; },
        +[](AttentionSequence& s) { s.blocks = {}; }}) {
    sequences_[0] = sound;
    change(sequences_[0]);
    EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("sequence")));
  }
}

TEST_F(LlamaBatchTest, RefusesAForeignArenaOrCommunicator) {
  arena_.shape.kv_heads = 2;
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("arena")));
  arena_ = runner_->pool().arena(0);
  comms_ = CreateThreadCommunicators(2, absl::Seconds(10));
  EXPECT_THAT(Run(), StatusIs(kBad, HasSubstr("communicator")));
}

}  // namespace
}  // namespace loopserve::worker
