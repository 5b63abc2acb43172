#include "worker/text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/worker/text/random_text.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Split(const PreTokenizer& pre_tokenizer, const std::string& text) {
  const auto ends = pre_tokenizer.Split(text);
  EXPECT_TRUE(ends.ok()) << ends.status();
  std::vector<std::string> words;
  size_t begin = 0;
  for (const size_t end : *ends) {
    EXPECT_GT(end, begin);
    words.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  EXPECT_EQ(begin, text.size());
  return words;
}

std::vector<std::string> Split(const char* name, const std::string& text) {
  auto pre_tokenizer = PreTokenizer::Create(name);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  return Split(**pre_tokenizer, text);
}

TEST(PreTokenizer, Gpt2) {
  EXPECT_THAT(Split("gpt-2", "Hello  we've 123 things!?"),
              ElementsAre("Hello", " ", " we", "'ve", " 123", " things", "!?"));
  EXPECT_THAT(Split("gpt-2", "don'T \n\n x \t"),
              ElementsAre("don", "'", "T", " \n\n", " x", " \t"));
  EXPECT_THAT(Split("gpt-2", ""), ElementsAre());
}

TEST(PreTokenizer, SmolLmTakesEveryDigitAloneFirst) {
  EXPECT_THAT(Split("smollm", "a 12.5 ½ ٣"),
              ElementsAre("a", " ", "1", "2", ".", "5", " ", "½", " ", "٣"));
  // The digit is gone when the second pass looks at the spaces: nothing follows them.
  EXPECT_THAT(Split("smollm", "x  7"), ElementsAre("x", "  ", "7"));
  EXPECT_THAT(Split("gpt-2", "x  7"), ElementsAre("x", " ", " 7"));
}

TEST(PreTokenizer, Llama3) {
  EXPECT_THAT(Split("llama-bpe", "It'S 12345 «quoted»\r\n\n  end"),
              ElementsAre("It", "'S", " ", "123", "45", " «", "quoted", "»\r\n\n", " ", " end"));
  EXPECT_THAT(Split("llama3", "a \n \n  b"), ElementsAre("a", " \n \n", " ", " b"));
  // Without UTF case folding: U+017F is not an s.
  EXPECT_THAT(Split("llama3", "it'ſ"), ElementsAre("it", "'ſ"));
  EXPECT_THAT(Split("llama3", "'sx"), ElementsAre("'s", "x"));
}

TEST(PreTokenizer, Qwen2TakesDigitsOneByOne) {
  EXPECT_THAT(Split("qwen2", "a 123"), ElementsAre("a", " ", "1", "2", "3"));
}

TEST(PreTokenizer, Default) {
  EXPECT_THAT(Split("default", "a,b 1234567 $x`y"),
              ElementsAre("a", ",", "b", " ", "123", "456", "7", " ", "$", "x", "`", "y"));
}

TEST(PreTokenizer, ClassesAreThoseOfUnicode15_1) {
  // A letter of 15.1, a letter and a digit of 15.0, and U+180E, which is no white space.
  EXPECT_THAT(Split("gpt-2", "a\U0002EBF0b"), ElementsAre("a\U0002EBF0b"));
  EXPECT_THAT(Split("gpt-2", "a\U00011F04b"), ElementsAre("a\U00011F04b"));
  EXPECT_THAT(Split("smollm", "a\U00011F50b"), ElementsAre("a", "\U00011F50", "b"));
  EXPECT_THAT(Split("gpt-2", "a\u180E."), ElementsAre("a", "\u180E."));
  EXPECT_THAT(Split("gpt-2", "a\u3000\u3000b"), ElementsAre("a", "\u3000", "\u3000", "b"));
}

// The number of code points in each class that 15.1 has; a later PCRE2 may bring a later Unicode.
TEST(PreTokenizer, ClassSizesArePinned) {
  auto pre_tokenizer = PreTokenizer::Create("gpt-2");
  ASSERT_TRUE(pre_tokenizer.ok());
  int letters = 0;
  int numbers = 0;
  int spaces = 0;
  const auto together = [&](const std::string& text) {
    return (*pre_tokenizer)->Split(text)->size() == 1;
  };
  for (uint32_t code_point = 0x80; code_point < 0x110000; ++code_point) {
    if (code_point >= 0xD800 && code_point < 0xE000) continue;
    std::string text;
    AppendUtf8(code_point, text);
    letters += together("a" + text);
    numbers += together("1" + text);
    spaces += together("\t" + text);
  }
  EXPECT_EQ(letters, 136674);
  EXPECT_EQ(numbers, 1821);
  EXPECT_EQ(spaces, 19);
}

TEST(PreTokenizer, CoversAnyTextWithoutGaps) {
  for (const char* name : {"gpt-2", "default", "smollm", "llama-bpe", "qwen2"}) {
    auto pre_tokenizer = PreTokenizer::Create(name);
    ASSERT_TRUE(pre_tokenizer.ok());
    RandomText random(2);
    for (int i = 0; i < 500; ++i) Split(**pre_tokenizer, random.Next(60));
  }
}

// Texts that make careless patterns backtrack without end or run out of stack.
TEST(PreTokenizer, CopesWithLongRuns) {
  constexpr size_t kLong = 1 << 20;
  std::vector<std::string> texts;
  for (const char* part : {"a", " ", "\n", "!", "1", "'", " \n", "\t ", "a ", "é", "\u3000"}) {
    std::string text;
    while (text.size() < kLong) text += part;
    texts.push_back(text + "x");
  }
  for (const char* name : {"gpt-2", "default", "smollm", "llama-bpe", "qwen2"}) {
    auto pre_tokenizer = PreTokenizer::Create(name);
    ASSERT_TRUE(pre_tokenizer.ok());
    for (const std::string& text : texts) {
      const auto ends = (*pre_tokenizer)->Split(text);
      ASSERT_TRUE(ends.ok()) << name << ends.status();
      EXPECT_EQ(ends->back(), text.size());
    }
  }
}

TEST(PreTokenizer, RefusesUnknownFamiliesByName) {
  for (const char* name : {"", "gpt2", "tekken", "SMOLLM", "smollm "}) {
    const auto status = PreTokenizer::Create(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("smollm, llama-bpe"));
  }
}

}  // namespace
}  // namespace loopserve::worker
