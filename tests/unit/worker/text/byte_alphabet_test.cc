#include "worker/text/byte_alphabet.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "worker/text/utf8.h"

namespace loopserve::worker {
namespace {

TEST(ByteAlphabet, SpellsTheKnownOnes) {
  const ByteAlphabet alphabet;
  EXPECT_EQ(alphabet.Spell(" the\n"), "ĠtheĊ");
  EXPECT_EQ(alphabet.Spell("é"), "Ã©");
  EXPECT_EQ(alphabet.Spell(uint8_t{0}), "Ā");
  EXPECT_EQ(alphabet.Spell(uint8_t{0xAD}), "Ń");
}

TEST(ByteAlphabet, EveryByteHasItsOwnVisibleCharacter) {
  const ByteAlphabet alphabet;
  std::set<std::string> seen;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string spelling(alphabet.Spell(static_cast<uint8_t>(byte)));
    EXPECT_TRUE(IsValidUtf8(spelling));
    EXPECT_TRUE(seen.insert(spelling).second) << byte;
    EXPECT_EQ(alphabet.Read(spelling), std::string(1, static_cast<char>(byte)));
  }
}

TEST(ByteAlphabet, RefusesOtherCharacters) {
  const ByteAlphabet alphabet;
  EXPECT_EQ(alphabet.Read("a b"), std::nullopt);
  EXPECT_EQ(alphabet.Read("日"), std::nullopt);
  EXPECT_EQ(alphabet.Read("\xC4"), std::nullopt);
  EXPECT_EQ(alphabet.Read(""), "");
}

}  // namespace
}  // namespace loopserve::worker
