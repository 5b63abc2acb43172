#include "clients/cli/demo_script.h"

#include <array>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace loopserve::clients {
namespace {

using Phrases = std::array<const char*, 8>;

constexpr Phrases kWho = {"The harbour master", "A baker on Mill Lane", "The night watchman",
                          "The school teacher", "An old fisherman",     "The station clerk",
                          "The gardener",       "A young carpenter"};
constexpr Phrases kDid = {"wrote down", "noticed",   "counted", "measured",
                          "repaired",   "described", "painted", "delivered"};
constexpr Phrases kWhat = {"three boats near the pier", "a row of bright lanterns",
                           "the level of the river",    "twelve sacks of flour",
                           "the clock above the gate",  "an apple tree in bloom",
                           "the broken wooden bridge",  "a letter from the coast"};
constexpr Phrases kWhen = {
    "before breakfast",  "at noon", "in the late afternoon", "after the rain",
    "during the market", "at dusk", "on the way home",       "while the bells rang"};

// Knuth's linear congruential generator: the same text everywhere.
constexpr uint64_t kMultiplier = 6364136223846793005;
constexpr uint64_t kIncrement = 1442695040888963407;
constexpr uint64_t kStart = 12345;
constexpr int kDiscardedBits = 33;

}  // namespace

std::string DemoLongMessage(int sentences) {
  std::string text = "Here are my notes about the village.";
  uint64_t state = kStart;
  for (int i = 0; i < sentences; ++i) {
    state = state * kMultiplier + kIncrement;
    const uint64_t bits = state >> kDiscardedBits;
    absl::StrAppend(&text, " ", kWho[bits % 8], " ", kDid[(bits >> 3) % 8], " ",
                    kWhat[(bits >> 6) % 8], " ", kWhen[(bits >> 9) % 8], ".");
  }
  return text + "\nWhat is the code word?";
}

bool Mentions(absl::string_view text, absl::string_view answer) {
  return absl::StrContains(absl::AsciiStrToLower(text), absl::AsciiStrToLower(answer));
}

}  // namespace loopserve::clients
