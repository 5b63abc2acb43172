#include "worker/model/fingerprint.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/gguf_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::MakeTinyModel;
using ::loopserve::testing::TinyModelSpec;
using Bytes = std::vector<std::byte>;

std::string Fingerprint(const Bytes& bytes, uint64_t whole_limit = kWholeContentBytes) {
  const auto file = GgufFile::Parse(bytes);
  EXPECT_TRUE(file.ok()) << file.status();
  const auto config = ReadModelConfig(**file);
  EXPECT_TRUE(config.ok()) << config.status();
  return FingerprintOf(**file, *config, whole_limit);
}

std::string Fingerprint(const TinyModelSpec& spec) { return Fingerprint(MakeTinyModel(spec)); }

TEST(FingerprintTest, IsWhatTheConfigCarries) {
  const Bytes bytes = MakeTinyModel(*FindPreset("gqa"));
  const auto file = GgufFile::Parse(bytes);
  ASSERT_OK(file);
  const auto config = ReadModelConfig(**file);
  ASSERT_OK(config);
  EXPECT_EQ(config->fingerprint, Fingerprint(bytes));
  EXPECT_EQ(config->fingerprint.size(), 32U);
}

TEST(FingerprintTest, DiffersForAllThatChangesKv) {
  std::set<std::string> seen;
  size_t models = 0;
  for (const TinyModelSpec& preset : testing::TinyPresets()) {
    ++models;
    seen.insert(Fingerprint(preset));
  }
  const TinyModelSpec base = *FindPreset("gqa");
  for (const auto& change :
       {+[](TinyModelSpec& s) { s.seed = 99; },
        +[](TinyModelSpec& s) { s.type = WeightType::kQ8_0; },
        +[](TinyModelSpec& s) { s.rope_base = 10001; }, +[](TinyModelSpec& s) { s.rope_dims = 8; },
        +[](TinyModelSpec& s) { s.layers = 3; }, +[](TinyModelSpec& s) { s.tied = false; }}) {
    TinyModelSpec changed = base;
    change(changed);
    ++models;
    seen.insert(Fingerprint(changed));
  }
  EXPECT_EQ(seen.size(), models);
}

TEST(FingerprintTest, IgnoresWhatLeavesKvAlone) {
  const TinyModelSpec base = *FindPreset("gqa");
  TinyModelSpec changed = base;
  changed.name = "renamed";
  changed.pre_tokenizer = "gpt-2";
  changed.context = 256;
  EXPECT_EQ(Fingerprint(base), Fingerprint(changed));
}

TEST(FingerprintTest, SeesEveryByteOfAFileHashedWhole) {
  Bytes bytes = MakeTinyModel(*FindPreset("gqa"));
  const std::string before = Fingerprint(bytes);
  bytes[bytes.size() - 200] ^= std::byte{1};
  EXPECT_NE(Fingerprint(bytes), before);
}

TEST(FingerprintTest, SamplesBothEndsOfLargeTensors) {
  TinyModelSpec spec = *FindPreset("gqa");
  spec.vocab = 6000;  // an embedding of 2.2 MiB
  const Bytes bytes = MakeTinyModel(spec);
  const auto file = GgufFile::Parse(bytes);
  ASSERT_OK(file);
  const auto data = (*file)->FindTensor("token_embd.weight")->view.data;
  const auto offset = static_cast<size_t>(data.data() - bytes.data());
  ASSERT_GT(data.size(), size_t{2} << 20);
  const auto changes = [&](size_t at) {
    Bytes changed = bytes;
    changed[offset + at] ^= std::byte{1};
    return Fingerprint(changed, 0) != Fingerprint(bytes, 0);
  };
  EXPECT_TRUE(changes(0));
  EXPECT_TRUE(changes((64 << 10) - 1));
  EXPECT_FALSE(changes(512 << 10));  // between the windows
  EXPECT_TRUE(changes(1 << 20));
  EXPECT_TRUE(changes(data.size() - 1));
  EXPECT_NE(Fingerprint(bytes, 0), Fingerprint(bytes));
}

}  // namespace
}  // namespace loopserve::worker
