#include "worker/text/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/worker/text/random_text.h"

namespace loopserve::worker {
namespace {

// What a stream makes of the pieces.
std::string Streamed(const std::vector<std::string>& pieces) {
  Utf8Stream stream;
  std::string out;
  for (const std::string& piece : pieces) {
    stream.Push(piece, out);
    EXPECT_TRUE(IsValidUtf8(out));
  }
  stream.Flush(out);
  return out;
}

TEST(IsValidUtf8, AcceptsWhatIsWellFormed) {
  for (const char* text : {"", "a", "eight by", "nine byte", "é", "\u07FF", "\u0800", "\uD7FF",
                           "\uE000", "\uFFFF", "\U00010000", "\U0010FFFF", "日本語 12345678 日"}) {
    EXPECT_TRUE(IsValidUtf8(text)) << text;
  }
  EXPECT_TRUE(IsValidUtf8(std::string("\0", 1)));
}

TEST(IsValidUtf8, RefusesEveryKindOfIllFormedText) {
  for (const char* text : {"\x80",
                           "\xBF",
                           "\xC0\x80",
                           "\xC1\xBF",
                           "\xC3",
                           "\xC3x",
                           "\xE0\x80\x80",
                           "\xE0\x9F\xBF",
                           "\xE2\x82",
                           "\xED\xA0\x80",
                           "\xED\xBF\xBF",
                           "\xF0\x80\x80\x80",
                           "\xF0\x8F\xBF\xBF",
                           "\xF0\x9F\x98",
                           "\xF4\x90\x80\x80",
                           "\xF5\x80\x80\x80",
                           "\xFE",
                           "\xFF",
                           "eight by\x80",
                           "seven..\xC3"}) {
    EXPECT_FALSE(IsValidUtf8(text)) << text;
  }
}

TEST(AppendUtf8, RoundTripsEveryCodePoint) {
  for (uint32_t code_point = 0; code_point < 0x110000; ++code_point) {
    std::string text;
    AppendUtf8(code_point, text);
    const bool surrogate = code_point >= 0xD800 && code_point < 0xE000;
    ASSERT_EQ(IsValidUtf8(text), !surrogate) << code_point;
    if (surrogate) continue;
    ASSERT_EQ(NextUtf8(text).bytes, text.size()) << code_point;
  }
}

TEST(Utf8Stream, IsTheSameHoweverTheBytesAreCut) {
  const std::string text = "aé日\U0001F600!";
  for (size_t first = 0; first <= text.size(); ++first) {
    for (size_t second = first; second <= text.size(); ++second) {
      EXPECT_EQ(Streamed({text.substr(0, first), text.substr(first, second - first),
                          text.substr(second)}),
                text);
    }
  }
}

TEST(Utf8Stream, EmitsACodePointWithItsLastByte) {
  Utf8Stream stream;
  std::string out;
  stream.Push("\xF0\x9F", out);
  stream.Push("\x98", out);
  EXPECT_EQ(out, "");
  stream.Push("\x80", out);
  EXPECT_EQ(out, "\U0001F600");
}

// One U+FFFD per maximal subpart, as bytes.decode("utf-8", "replace") in Python.
TEST(Utf8Stream, ReplacesInvalidBytes) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a\x80z", "a\uFFFDz"},
      {"\xC0\x80", "\uFFFD\uFFFD"},
      {"\xE2\x82z", "\uFFFDz"},
      {"\xE0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xF0\x9F\x98", "\uFFFD"},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", "\uFFFD\U0001F600"},
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xFF\xFE", "\uFFFD\uFFFD"},
  };
  for (const auto& [bytes, text] : cases) {
    EXPECT_EQ(Streamed({bytes}), text);
    std::vector<std::string> single;
    for (const char byte : bytes) single.emplace_back(1, byte);
    EXPECT_EQ(Streamed(single), text);
  }
}

TEST(Utf8Stream, PassesValidTextThrough) {
  RandomText random(1);
  for (int i = 0; i < 200; ++i) {
    const std::string text = random.Next(40);
    const size_t cut = static_cast<size_t>(random.Below(static_cast<int>(text.size()) + 1));
    EXPECT_EQ(Streamed({text.substr(0, cut), text.substr(cut)}), text);
  }
}

TEST(RepairUtf8, ReadsAsLlamaCppDoes) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"aé", "aé"},
      {"\xC1\x81", "A"},                       // overlong: the short form
      {"\xE0\x82\xA9", "\u00A9"},              //
      {"\xE2\x82", "\uFFFD\uFFFD"},            // cut off: each byte on its own
      {"\xF8\x88\x80", "\uFFFD\uFFFD\uFFFD"},  // no such first byte
      {"\x80", "\uFFFD"},
  };
  for (const auto& [bytes, text] : cases) {
    const auto repaired = RepairUtf8(bytes);
    ASSERT_TRUE(repaired.ok());
    EXPECT_EQ(repaired->bytes, text);
    EXPECT_EQ(repaired->matchable, text);
  }
}

TEST(RepairUtf8, KeepsSurrogatesButMatchesThemAsAnotherCharacter) {
  const auto repaired = RepairUtf8("a\xED\xA0\x80z");
  ASSERT_TRUE(repaired.ok());
  EXPECT_EQ(repaired->bytes, "a\xED\xA0\x80z");
  EXPECT_EQ(repaired->matchable, "a\uE000z");
  EXPECT_TRUE(IsValidUtf8(repaired->matchable));
}

TEST(RepairUtf8, RefusesWhatNoCodePointIs) {
  EXPECT_EQ(RepairUtf8("\xF4\x90\x80\x80").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace loopserve::worker
