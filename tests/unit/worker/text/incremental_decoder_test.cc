#include "worker/text/incremental_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/worker/text/random_text.h"
#include "tests/unit/worker/text/small_vocabulary.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;

class IncrementalDecoderTest : public ::testing::Test {
 protected:
  IncrementalDecoderTest() {
    vocabulary_.AddChatMl();
    // Starts and ends inside a code point.
    half_ = vocabulary_.Add(vocabulary_.alphabet.Spell("b\xC3\xA9z\xF0\x9F"), TokenType::kNormal);
    tokenizer_ = vocabulary_.Make();
  }

  IncrementalDecoder Make(IncrementalDecoder::Options options = {}) {
    auto decoder = IncrementalDecoder::Create(*tokenizer_, std::move(options));
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    return *std::move(decoder);
  }

  // What each token yields, and the flush.
  std::vector<std::string> Pieces(IncrementalDecoder decoder, const std::vector<TokenId>& ids) {
    std::vector<std::string> pieces;
    for (const TokenId id : ids) pieces.push_back(decoder.Push(id));
    pieces.push_back(decoder.Flush());
    for (const std::string& piece : pieces) EXPECT_TRUE(IsValidUtf8(piece)) << piece;
    return pieces;
  }

  SmallVocabulary vocabulary_;
  TokenId half_ = 0;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(IncrementalDecoderTest, WaitsForWholeCodePoints) {
  EXPECT_THAT(Pieces(Make(), Bytes("aé")), ElementsAre("a", "", "é", ""));
  EXPECT_THAT(Pieces(Make(), Bytes("\U0001F600")), ElementsAre("", "", "", "\U0001F600", ""));
}

TEST_F(IncrementalDecoderTest, EveryPrefixOfMultiByteTextStaysValid) {
  const std::string text = "é日\U0001F468\u200D\U0001F469 ½٣";
  for (size_t length = 0; length <= text.size(); ++length) {
    std::string joined;
    for (const std::string& piece : Pieces(Make(), Bytes(text.substr(0, length)))) joined += piece;
    const bool whole = IsValidUtf8(text.substr(0, length));
    EXPECT_EQ(joined.ends_with("\uFFFD"), !whole) << length;
    if (whole) {
      EXPECT_EQ(joined, text.substr(0, length));
    }
  }
}

TEST_F(IncrementalDecoderTest, InvalidBytesBecomeReplacementCharacters) {
  EXPECT_THAT(Pieces(Make(), Bytes("a\xC3z\x80")), ElementsAre("a", "", "\uFFFDz", "\uFFFD", ""));
  EXPECT_THAT(Pieces(Make(), Bytes("\xF0\x9F")), ElementsAre("", "", "\uFFFD"));
}

TEST_F(IncrementalDecoderTest, ControlTokensAreSilentUnlessAskedFor) {
  const std::vector<TokenId> ids = {'a', 256, 'b', 257, -5, 1 << 30};
  EXPECT_THAT(Pieces(Make(), ids), ElementsAre("a", "", "b", "", "", "", ""));
  EXPECT_THAT(Pieces(Make({.show_control = true}), ids),
              ElementsAre("a", "<|im_start|>", "b", "<|im_end|>", "", "", ""));
}

TEST_F(IncrementalDecoderTest, StopsBeforeAStopString) {
  IncrementalDecoder decoder = Make({.stops = {"never", "\nUser"}});
  std::string text;
  for (const TokenId id : Bytes("Hi\n\nUser: x")) text += decoder.Push(id);
  EXPECT_TRUE(decoder.stopped());
  EXPECT_EQ(decoder.matched_stop(), 1u);
  EXPECT_EQ(text + decoder.Flush(), "Hi\n");
}

TEST_F(IncrementalDecoderTest, AStopStringMayEndInsideAToken) {
  IncrementalDecoder decoder = Make({.stops = {"bé"}});
  EXPECT_EQ(decoder.Push('a'), "a");
  EXPECT_EQ(decoder.Push(half_), "");
  EXPECT_TRUE(decoder.stopped());
  EXPECT_EQ(decoder.Flush(), "");
}

TEST_F(IncrementalDecoderTest, AHeldStopPrefixComesOutAtTheEnd) {
  EXPECT_THAT(Pieces(Make({.stops = {"abc"}}), Bytes("ab")), ElementsAre("", "", "ab"));
  // The bytes of a code point that never came are certain only at the end, where they may stop.
  EXPECT_THAT(Pieces(Make({.stops = {"a\uFFFD"}}), Bytes("xa\xC3")), ElementsAre("x", "", "", ""));
}

TEST_F(IncrementalDecoderTest, JoinsToTheDecodedText) {
  RandomText random(6);
  for (int i = 0; i < 200; ++i) {
    const std::string text = random.Next(40);
    std::string joined;
    for (const std::string& piece : Pieces(Make({.stops = {"\x01\x02\x03"}}), Bytes(text))) {
      joined += piece;
    }
    EXPECT_EQ(joined, text);
  }
}

TEST_F(IncrementalDecoderTest, RefusesBadStopStrings) {
  EXPECT_EQ(IncrementalDecoder::Create(*tokenizer_, {.stops = {""}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace loopserve::worker
