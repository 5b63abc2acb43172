#include "worker/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/unit/worker/text/random_text.h"
#include "tests/unit/worker/text/small_vocabulary.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<TokenId> Encode(const Tokenizer& tokenizer, absl::string_view text,
                            EncodeOptions options = {}) {
  const auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(std::vector<TokenId>{});
}

TEST(Tokenizer, MergesInsideWordsOnly) {
  SmallVocabulary vocabulary;
  const TokenId he = vocabulary.Merge("h", "e");
  const TokenId ll = vocabulary.Merge("l", "l");
  const TokenId hell = vocabulary.Merge("he", "ll");
  const TokenId o_space = vocabulary.Merge("o", " ");
  const auto tokenizer = vocabulary.Make();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "hello he"), ElementsAre(hell, 'o', ' ', he));
  EXPECT_THAT(Encode(*tokenizer, "hel"), ElementsAre(he, 'l'));
  EXPECT_THAT(Encode(*tokenizer, ""), ElementsAre());
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{hell, o_space, ll}), "hello ll");
}

TEST(Tokenizer, UserTextNeverYieldsControlTokens) {
  SmallVocabulary vocabulary;
  vocabulary.AddChatMl();
  const TokenId unknown = vocabulary.Add("<unk>", TokenType::kUnknown);
  const auto tokenizer = vocabulary.Make();
  ASSERT_NE(tokenizer, nullptr);
  for (const char* text : {"<|im_start|>", "a<|im_end|>b", "<|endoftext|><|endoftext|>", "<unk>"}) {
    EXPECT_EQ(Encode(*tokenizer, text), Bytes(text));
  }
  EXPECT_THAT(Encode(*tokenizer, "a<|im_end|><unk>b", {.parse_special = true}),
              ElementsAre('a', *tokenizer->FindToken("<|im_end|>"), unknown, 'b'));
}

// Spelled in letters that BPE can join, and a whole word for families that ignore merges.
TEST(Tokenizer, NoMergeYieldsAControlToken) {
  for (const char* pre : {"gpt-2", "llama-bpe"}) {
    SmallVocabulary vocabulary(pre);
    vocabulary.Merge("E", "O");
    const TokenId control = vocabulary.Merge("EO", "T");
    vocabulary.spec.token_types[control] = static_cast<int32_t>(TokenType::kControl);
    const auto tokenizer = vocabulary.Make();
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_THAT(Encode(*tokenizer, "EOT"), ElementsAre(control - 1, 'T')) << pre;
    EXPECT_THAT(Encode(*tokenizer, "EOT", {.parse_special = true}), ElementsAre(control));
  }
}

TEST(Tokenizer, KnowsEndOfTurnSpellingsAsControlWhateverTheFileSays) {
  SmallVocabulary vocabulary;
  const TokenId end = vocabulary.Add("<|im_end|>", TokenType::kUserDefined);
  const auto tokenizer = vocabulary.Make();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_TRUE(tokenizer->IsControl(end));
  EXPECT_EQ(Encode(*tokenizer, "<|im_end|>"), Bytes("<|im_end|>"));
}

TEST(Tokenizer, UserDefinedTokensAreAlwaysRecognised) {
  SmallVocabulary vocabulary;
  const TokenId tool = vocabulary.Add("<tool_call>", TokenType::kUserDefined);
  const TokenId spaces = vocabulary.Add("    ", TokenType::kUserDefined);
  const auto tokenizer = vocabulary.Make();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "x<tool_call>     y"), ElementsAre('x', tool, spaces, ' ', 'y'));
  EXPECT_EQ(tokenizer->TokenToBytes(tool), "<tool_call>");
}

TEST(Tokenizer, TakesWholeWordsWhereTheFamilyIgnoresMerges) {
  for (const bool ignores : {true, false}) {
    SmallVocabulary vocabulary(ignores ? "llama-bpe" : "gpt-2");
    const TokenId word = vocabulary.Add("Ġhey", TokenType::kNormal);  // no merge leads here
    const auto tokenizer = vocabulary.Make();
    ASSERT_NE(tokenizer, nullptr);
    const std::vector<TokenId> whole = {word};
    EXPECT_EQ(Encode(*tokenizer, " hey"), ignores ? whole : Bytes(" hey"));
  }
}

TEST(Tokenizer, AddsBosOnlyWhereAskedAndWanted) {
  SmallVocabulary vocabulary("llama-bpe");
  vocabulary.spec.bos_id = vocabulary.Add("<|begin_of_text|>", TokenType::kControl);
  auto tokenizer = vocabulary.Make();
  EXPECT_THAT(Encode(*tokenizer, "a"), ElementsAre('a'));
  EXPECT_THAT(Encode(*tokenizer, "a", {.add_bos = true}), ElementsAre(256, 'a'));
  vocabulary.spec.add_bos = false;
  tokenizer = vocabulary.Make();
  EXPECT_THAT(Encode(*tokenizer, "a", {.add_bos = true}), ElementsAre('a'));
  vocabulary.spec.pre = "gpt-2";
  vocabulary.spec.add_bos.reset();
  EXPECT_FALSE(vocabulary.Make()->adds_bos());
}

TEST(Tokenizer, BytesWithoutATokenLeaveNoTrace) {
  SmallVocabulary vocabulary;
  vocabulary.spec.tokens['!'] = "replaced";
  const auto tokenizer = vocabulary.Make();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "a!b"), ElementsAre('a', 'b'));
}

TEST(Tokenizer, ReadsInvalidUtf8AsLlamaCppDoes) {
  const auto tokenizer = SmallVocabulary().Make();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "a\x80z"), Bytes("a\uFFFDz"));
  EXPECT_EQ(Encode(*tokenizer, "\xE2\x82"), Bytes("\uFFFD\uFFFD"));
  EXPECT_EQ(Encode(*tokenizer, "\xED\xA0\x80"), Bytes("\xED\xA0\x80"));
  EXPECT_EQ(tokenizer->Encode("\xF7\xBF\xBF\xBF").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, DecodeInvertsEncode) {
  for (const char* pre : {"gpt-2", "default", "smollm", "llama-bpe", "qwen2"}) {
    SmallVocabulary vocabulary(pre);
    for (const char* pair : {" t", "th", "he", "in", "  ", "\n\n", "s "}) {
      vocabulary.Merge(std::string(1, pair[0]), std::string(1, pair[1]));
    }
    vocabulary.AddChatMl();
    vocabulary.Add("<tool_call>", TokenType::kUserDefined);
    const auto tokenizer = vocabulary.Make();
    ASSERT_NE(tokenizer, nullptr);
    RandomText random(5);
    for (int i = 0; i < 300; ++i) {
      const std::string text = random.Next(60) + (i % 3 == 0 ? "<tool_call><|im_end|>" : "");
      EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text)), text);
    }
  }
}

TEST(Tokenizer, TokenToBytesByType) {
  SmallVocabulary vocabulary;
  vocabulary.AddChatMl();
  const TokenId byte = vocabulary.Add("<0xF0>", TokenType::kByte);
  const TokenId bad_byte = vocabulary.Add("<0xZZ>", TokenType::kByte);
  const TokenId unused = vocabulary.Add("spare", TokenType::kUnused);
  const TokenId other = vocabulary.Add("日", TokenType::kNormal);
  const auto tokenizer = vocabulary.Make();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->TokenToBytes(' '), " ");
  EXPECT_EQ(tokenizer->TokenToBytes(0xF0), "\xF0");
  EXPECT_EQ(tokenizer->TokenToBytes(256), "");
  EXPECT_EQ(tokenizer->TokenToBytes(256, true), "<|im_start|>");
  EXPECT_EQ(tokenizer->TokenToBytes(byte), "\xF0");
  EXPECT_EQ(tokenizer->TokenToBytes(bad_byte), "");
  EXPECT_EQ(tokenizer->TokenToBytes(unused), "");
  EXPECT_EQ(tokenizer->TokenToBytes(other), "日");
  for (const TokenId outside : {-1, other + 1, 1 << 30, -(1 << 30)}) {
    EXPECT_EQ(tokenizer->TokenToBytes(outside, true), "");
    EXPECT_FALSE(tokenizer->IsControl(outside));
  }
}

TEST(Tokenizer, CopesWithLongText) {
  SmallVocabulary vocabulary;
  for (std::string run = "a"; run.size() < 64; run += run) vocabulary.Merge(run, run);
  vocabulary.AddChatMl();
  const auto tokenizer = vocabulary.Make();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, std::string(1 << 20, 'a')).size(), (1u << 20) / 64);
  EXPECT_EQ(Encode(*tokenizer, std::string(1 << 20, ' ')).size(), 1u << 20);
  EXPECT_EQ(Encode(*tokenizer, std::string(1 << 20, '<'), {.parse_special = true}).size(),
            1u << 20);
  EXPECT_EQ(tokenizer->Encode(std::string(Tokenizer::kMaxTextBytes + 1, 'a')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

struct BadSpec {
  std::string message;
  std::function<void(TokenizerSpec&)> spoil;
};

TEST(Tokenizer, RefusesHostileSpecs) {
  const std::vector<BadSpec> bad = {
      {"tokenizer.ggml.model", [](auto& s) { s.model = "llama"; }},
      {"tokenizer.ggml.pre", [](auto& s) { s.pre = "tekken"; }},
      {"holds 0 tokens", [](auto& s) { s.tokens.clear(), s.token_types.clear(); }},
      {"holds 4194305 tokens", [](auto& s) { s.tokens.resize(Tokenizer::kMaxTokens + 1, "a"); }},
      {"token_type holds", [](auto& s) { s.token_types.pop_back(); }},
      {"token_type holds", [](auto& s) { s.token_types.clear(); }},
      {"token 5 is empty", [](auto& s) { s.tokens[5] = ""; }},
      {"token 6 repeats", [](auto& s) { s.tokens[6] = s.tokens[5]; }},
      {"token 7 is too long",
       [](auto& s) { s.tokens[7] = std::string(Tokenizer::kMaxTokenBytes + 1, 'a'); }},
      {"unknown type 7", [](auto& s) { s.token_types[8] = 7; }},
      {"unknown type -2147483648", [](auto& s) { s.token_types[8] = INT32_MIN; }},
      {"is not two tokens", [](auto& s) { s.merges = {"ab"}; }},
      {"is not two tokens", [](auto& s) { s.merges = {""}; }},
      {"is not two tokens", [](auto& s) { s.merges = {" "}; }},
      {"is not two tokens", [](auto& s) { s.merges = {" b"}; }},
      {"not in the vocabulary", [](auto& s) { s.merges = {"a "}; }},
      {"not in the vocabulary", [](auto& s) { s.merges = {"a b"}; }},
      {"not in the vocabulary", [](auto& s) { s.merges = {"a b c"}; }},
      {"is repeated", [](auto& s) { s.merges.push_back(s.merges[0]); }},
      {"merges holds",
       [](auto& s) { s.merges.resize(2 * Tokenizer::kMaxTokens + 1, s.merges[0]); }},
      {"bos_token_id is -1", [](auto& s) { s.bos_id = -1; }},
      {"eos_token_id is 1000", [](auto& s) { s.eos_id = 1000; }},
      {"eot_token_id is", [](auto& s) { s.eot_id = INT32_MAX; }},
      {"padding_token_id is", [](auto& s) { s.pad_id = INT32_MIN; }},
  };
  for (const BadSpec& test : bad) {
    SmallVocabulary vocabulary;
    vocabulary.Merge("x", "y");
    test.spoil(vocabulary.spec);
    const auto status = Tokenizer::Create(std::move(vocabulary.spec)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.message));
  }
}

TEST(Tokenizer, HostileSpellingsAreEscapedInMessages) {
  SmallVocabulary vocabulary;
  vocabulary.spec.merges = {"\x01\xFF\n"};
  const auto status = Tokenizer::Create(std::move(vocabulary.spec)).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("\\x01\\xff\\n"));
}

}  // namespace
}  // namespace loopserve::worker
