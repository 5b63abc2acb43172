// The tokenizer and the chat template against the SmolLM2 vocabulary. The file is not part of the
// sources; LOOPSERVE_MODEL names it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "tests/unit/worker/text/random_text.h"
#include "worker/text/gguf_vocab.h"
#include "worker/text/incremental_decoder.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;

class RealVocabulary : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("LOOPSERVE_MODEL");
    if (path == nullptr || *path == '\0') {
      GTEST_SKIP() << "LOOPSERVE_MODEL is not set: nothing was checked against a real vocabulary";
    }
    const auto file = GgufFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    auto tokenizer = LoadTokenizer(**file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    auto chat = LoadChatTemplate(**file, *tokenizer_);
    ASSERT_TRUE(chat.ok()) << chat.status();
    chat_ = *std::move(chat);
  }

  std::vector<TokenId> Encode(absl::string_view text, bool parse_special = false) {
    return *tokenizer_->Encode(text, {.parse_special = parse_special});
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
};

TEST_F(RealVocabulary, GoldenIds) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152u);
  EXPECT_THAT(Encode("Hello, we can use"), ElementsAre(19556, 28, 392, 416, 722));
  EXPECT_THAT(Encode("The capital of France is"), ElementsAre(504, 3575, 282, 4649, 314));
  EXPECT_THAT(Encode("Hello world! 123"), ElementsAre(19556, 905, 17, 216, 33, 34, 35));
  EXPECT_THAT(Encode("  multiple   spaces"), ElementsAre(216, 2701, 256, 5600));
  EXPECT_THAT(Encode("\n"), ElementsAre(198));
  EXPECT_THAT(Encode("Café déjà vu."), ElementsAre(51, 1939, 2756, 32564, 90, 16739, 386, 101, 30));
  EXPECT_THAT(Encode("don't 12.5 ½ ٣"),
              ElementsAre(12420, 982, 216, 33, 34, 30, 37, 216, 16738, 216, 164, 113));
}

// What llama.cpp makes of the same texts.
TEST_F(RealVocabulary, NastyCorpus) {
  EXPECT_THAT(Encode("\r\n\r\n x\t\ty  "), ElementsAre(18682, 1792, 197, 197, 105, 256));
  EXPECT_THAT(Encode("'s'T'll don'T"), ElementsAre(506, 23, 68, 3060, 1326, 23, 68));
  EXPECT_THAT(Encode("日本語のテキスト、です。"),
              ElementsAre(23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391,
                          134, 11100, 226, 29917, 7365, 117, 39958, 19076));
  EXPECT_THAT(Encode("नमस्ते दुनिया"), ElementsAre(30658, 35090, 38770, 16525, 26293, 30581, 12335,
                                                116, 42990, 30658, 27011, 32932, 18075));
  EXPECT_THAT(Encode("สวัสดี"),
              ElementsAre(10283, 120, 10283, 117, 10283, 126, 10283, 120, 10283, 238, 10283, 130));
  EXPECT_THAT(Encode("👩\u200D👩\u200D👧 👍🏽"),
              ElementsAre(10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117,
                          15107, 235, 231, 10813, 233, 138));
  EXPECT_THAT(Encode("e\u0301\u0323 ﬁ ſ İ"),
              ElementsAre(85, 151, 219, 151, 113, 40367, 18811, 140, 24488, 125));
  EXPECT_THAT(Encode("\u00A0\u3000\u2028."), ElementsAre(15442, 12109, 218, 321, 118, 30));
  EXPECT_THAT(Encode("<|im_start|>user"), ElementsAre(44, 108, 306, 79, 3738, 108, 46, 4093));
  EXPECT_THAT(Encode("x²+y³≈①Ⅷ"),
              ElementsAre(104, 19133, 27, 105, 39050, 40533, 226, 173, 235, 250, 173, 223, 117));
  EXPECT_THAT(Encode("a\u200Db\uFEFFc"), ElementsAre(81, 321, 231, 82, 186, 136, 140, 83));
  EXPECT_THAT(
      Encode("print(\"%d\" % 0x1F)\n    return -1;"),
      ElementsAre(3272, 23901, 84, 18, 2471, 216, 32, 104, 33, 54, 25, 472, 1003, 731, 33, 43));
  EXPECT_THAT(Encode("ΑΒΓ абв אבג ابج"),
              ElementsAre(153, 235, 153, 236, 153, 237, 47060, 27714, 16464, 41771, 37657, 162, 236,
                          47141, 31462, 163, 122));
  EXPECT_THAT(Encode("\u180E\U0002EBF0\U00011F50 9"),
              ElementsAre(172, 250, 232, 187, 123, 124, 125, 187, 235, 138, 234, 216, 41));
  EXPECT_THAT(Encode("a\x80\xE2\x82z\xC0\x80"), ElementsAre(81, 24211, 24211, 24211, 106, 190));
}

TEST_F(RealVocabulary, DecodeInvertsEncode) {
  RandomText random(7);
  for (int i = 0; i < 1000; ++i) {
    const std::string text = random.Next(80);
    std::string kept;  // the vocabulary has no token for some bytes
    for (const char byte : text) {
      constexpr absl::string_view kMissing = "\x04\x06\x13\x14\x16\x1D\xF1\xF2";
      if (kMissing.find(byte) == absl::string_view::npos) kept.push_back(byte);
    }
    ASSERT_EQ(tokenizer_->Decode(Encode(text)), kept);
  }
}

TEST_F(RealVocabulary, ControlTokensOnlyWhereParsed) {
  EXPECT_THAT(Encode("<|im_start|>", true), ElementsAre(1));
  EXPECT_THAT(Encode("<|im_start|>"), ::testing::Each(::testing::Gt(16)));
  EXPECT_TRUE(tokenizer_->IsControl(0) && tokenizer_->IsControl(16));
  EXPECT_FALSE(tokenizer_->IsControl(17));
}

TEST_F(RealVocabulary, GoldenConversation) {
  const std::vector<Message> messages = {
      {"user", "Hi!"}, {"assistant", "Hello. How can I help?"}, {"user", "Count:\n1 2  3"}};
  const std::string rendered =
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
      "<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
      "Hello. How can I help?<|im_end|>\n<|im_start|>user\nCount:\n1 2  3<|im_end|>\n"
      "<|im_start|>assistant\n";
  EXPECT_EQ(*chat_->RenderTurn(LogState::kEmpty, messages), Encode(rendered, true));
  EXPECT_THAT(*chat_->RenderTurn(LogState::kEmpty, std::vector<Message>{messages[0]}),
              ElementsAre(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519,
                          28, 7018, 411, 407, 19712, 8182, 2, 198, 1, 4093, 198, 26843, 17, 2, 198,
                          1, 520, 9531, 198));
  EXPECT_THAT(chat_->StopTokens(), ElementsAre(2, 0));
}

TEST_F(RealVocabulary, StreamsWhatItDecodes) {
  const std::string text = "Grüße, 世界! 👩‍👩‍👧 ½٣ \n\n";
  auto decoder = IncrementalDecoder::Create(*tokenizer_, {.stops = {"\n\n\n"}});
  ASSERT_TRUE(decoder.ok());
  std::string streamed;
  for (const TokenId id : Encode(text)) streamed += decoder->Push(id);
  EXPECT_EQ(streamed + decoder->Flush(), text);
}

}  // namespace
}  // namespace loopserve::worker
