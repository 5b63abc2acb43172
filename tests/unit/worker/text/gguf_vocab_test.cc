#include "worker/text/gguf_vocab.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/gguf_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::GgufWriter;
using ::loopserve::testing::IsOk;
using ::loopserve::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Parsed {
  explicit Parsed(const GgufWriter& writer) : Parsed(writer.Build()) {}
  explicit Parsed(std::vector<std::byte> from) : bytes(std::move(from)) {
    file = *GgufFile::Parse(bytes);
  }
  std::vector<std::byte> bytes;
  std::unique_ptr<GgufFile> file;
};

GgufWriter Minimal() {
  GgufWriter writer;
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddStrings("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "ab"});
  writer.AddInts("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1, 1});
  writer.AddStrings("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  return writer;
}

TEST(GgufVocabTest, ReadsEveryKey) {
  GgufWriter writer = Minimal();
  writer.AddString("tokenizer.ggml.pre", "smollm");
  writer.AddU32("tokenizer.ggml.bos_token_id", 0);
  writer.AddU32("tokenizer.ggml.eos_token_id", 1);
  writer.AddU32("tokenizer.ggml.eot_token_id", 2);
  writer.AddU32("tokenizer.ggml.padding_token_id", 1);
  writer.AddBool("tokenizer.ggml.add_bos_token", true);
  writer.AddBool("tokenizer.ggml.add_space_prefix", true);
  writer.AddString("tokenizer.chat_template", "{{ x }}");
  const Parsed parsed(writer);
  const auto spec = ReadTokenizerSpec(*parsed.file);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->model, "gpt2");
  EXPECT_EQ(spec->pre, "smollm");
  EXPECT_THAT(spec->tokens, ElementsAre("a", "b", "ab"));
  EXPECT_THAT(spec->token_types, ElementsAre(1, 1, 1));
  EXPECT_THAT(spec->merges, ElementsAre("a b"));
  EXPECT_EQ(spec->bos_id, 0);
  EXPECT_EQ(spec->eos_id, 1);
  EXPECT_EQ(spec->eot_id, 2);
  EXPECT_EQ(spec->pad_id, 1);
  EXPECT_EQ(spec->add_bos, true);
  EXPECT_TRUE(spec->add_space_prefix);
  EXPECT_EQ(*ReadChatTemplate(*parsed.file), "{{ x }}");
}

TEST(GgufVocabTest, LeavesAbsentChoicesOpen) {
  const Parsed parsed(Minimal());
  const auto spec = ReadTokenizerSpec(*parsed.file);
  ASSERT_THAT(spec, IsOk());
  EXPECT_FALSE(spec->bos_id.has_value());
  EXPECT_FALSE(spec->eot_id.has_value());
  EXPECT_FALSE(spec->add_bos.has_value());
  EXPECT_THAT(ReadChatTemplate(*parsed.file), StatusIs(absl::StatusCode::kNotFound));
}

TEST(GgufVocabTest, NamesTheKeyThatIsMissingOrWrong) {
  const auto bad = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(ReadTokenizerSpec(*Parsed(GgufWriter()).file),
              StatusIs(bad, HasSubstr("tokenizer.ggml.model")));
  const std::pair<std::string, std::function<void(GgufWriter&)>> wrong[] = {
      {"bos_token_id", [](GgufWriter& w) { w.AddString("tokenizer.ggml.bos_token_id", "x"); }},
      {"eos_token_id", [](GgufWriter& w) { w.AddU32("tokenizer.ggml.eos_token_id", ~0U); }},
      {"add_bos_token", [](GgufWriter& w) { w.AddU32("tokenizer.ggml.add_bos_token", 1); }},
      {"pre", [](GgufWriter& w) { w.AddU32("tokenizer.ggml.pre", 1); }},
  };
  for (const auto& [key, add] : wrong) {
    GgufWriter writer = Minimal();
    add(writer);
    EXPECT_THAT(ReadTokenizerSpec(*Parsed(writer).file), StatusIs(bad, HasSubstr(key)));
  }
}

TEST(GgufVocabTest, TinyModelsHaveAWorkingTokenizerAndTemplate) {
  for (const auto& preset : testing::TinyPresets()) {
    const Parsed parsed(testing::MakeTinyModel(preset));
    const auto tokenizer = LoadTokenizer(*parsed.file);
    ASSERT_THAT(tokenizer, IsOk());
    const std::string text = "hello the world, 100 % caf\xC3\xA9\n";
    const auto ids = (*tokenizer)->Encode(text);
    ASSERT_THAT(ids, IsOk());
    EXPECT_LT(ids->size(), text.size());  // merges apply
    EXPECT_EQ((*tokenizer)->Decode(*ids), text);
    const auto chat = LoadChatTemplate(*parsed.file, **tokenizer);
    ASSERT_THAT(chat, IsOk());
    EXPECT_EQ((*chat)->end_of_turn(), 2);
  }
}

TEST(GgufVocabTest, RefusesAVocabularyThatIsNone) {
  GgufWriter writer;
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddStrings("tokenizer.ggml.tokens", std::vector<std::string>{"a", "a"});
  writer.AddInts("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1});
  writer.AddStrings("tokenizer.ggml.merges", std::vector<std::string>{});
  EXPECT_THAT(LoadTokenizer(*Parsed(writer).file), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(LoadTokenizer(*Parsed(GgufWriter()).file),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tokenizer.ggml.model")));
}

TEST(GgufVocabTest, RefusesChatWithoutAKnownTemplate) {
  const auto tokenizer =
      LoadTokenizer(*Parsed(testing::MakeTinyModel(*testing::FindPreset("gqa"))).file);
  ASSERT_THAT(tokenizer, IsOk());
  EXPECT_THAT(
      LoadChatTemplate(*Parsed(Minimal()).file, **tokenizer),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("tokenizer.chat_template")));
  GgufWriter unknown = Minimal();
  unknown.AddString("tokenizer.chat_template", "{{ x }}");
  EXPECT_THAT(LoadChatTemplate(*Parsed(unknown).file, **tokenizer),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  GgufWriter number = Minimal();
  number.AddU32("tokenizer.chat_template", 1);
  EXPECT_THAT(LoadChatTemplate(*Parsed(number).file, **tokenizer),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::worker
