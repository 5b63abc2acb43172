#include "worker/text/stop_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "common/error.h"

namespace loopserve::worker {
namespace {

StopMatcher Make(std::vector<std::string> stops) {
  auto matcher = StopMatcher::Create(std::move(stops));
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  return *std::move(matcher);
}

struct Result {
  std::string text;
  std::optional<size_t> matched;
  bool operator==(const Result&) const = default;
};

Result Matched(std::vector<std::string> stops, const std::vector<std::string>& pieces) {
  StopMatcher matcher = Make(std::move(stops));
  std::string out;
  for (const std::string& piece : pieces) matcher.Push(piece, out);
  matcher.Flush(out);
  return {out, matcher.matched()};
}

TEST(StopMatcher, CutsBeforeTheStopString) {
  EXPECT_EQ(Matched({"END"}, {"one END two"}), (Result{"one ", 0}));
  EXPECT_EQ(Matched({"x", "END"}, {"one E", "N", "D two"}), (Result{"one ", 1}));
  EXPECT_EQ(Matched({"END"}, {"one EN"}), (Result{"one EN", std::nullopt}));
  EXPECT_EQ(Matched({}, {"any", "thing"}), (Result{"anything", std::nullopt}));
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeAStopString) {
  StopMatcher matcher = Make({"\n\nUser:"});
  std::string out;
  matcher.Push("Hi.\n", out);
  EXPECT_EQ(out, "Hi.");
  matcher.Push("\n", out);
  EXPECT_EQ(out, "Hi.");
  matcher.Push("\n", out);  // the first of three cannot belong to it
  EXPECT_EQ(out, "Hi.\n");
  matcher.Push("Us", out);
  EXPECT_EQ(out, "Hi.\n");
  matcher.Push("ual", out);
  EXPECT_EQ(out, "Hi.\n\n\nUsual");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, FindsAStopStringThatBeginsInsideAFailedOne) {
  EXPECT_EQ(Matched({"aab"}, {"aaab"}), (Result{"a", 0}));
  EXPECT_EQ(Matched({"abac"}, {"ababac"}), (Result{"ab", 0}));
}

TEST(StopMatcher, TheFirstToBeCompleteWins) {
  EXPECT_EQ(Matched({"abc", "b"}, {"abc"}), (Result{"a", 1}));
  EXPECT_EQ(Matched({"b", "abc", "bc"}, {"xabx"}), (Result{"xa", 0}));
  EXPECT_EQ(Matched({"c", "bc", "abc"}, {"abc"}), (Result{"", 2}));  // all end here: the longest
}

TEST(StopMatcher, EmitsNothingAfterTheStop) {
  StopMatcher matcher = Make({"."});
  std::string out;
  matcher.Push("a.b", out);
  matcher.Push("c", out);
  matcher.Flush(out);
  EXPECT_EQ(out, "a");
  EXPECT_TRUE(matcher.stopped());
}

// What the header promises, found by looking at all of the text.
Result Definition(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<size_t> best;
    for (size_t i = 0; i < stops.size(); ++i) {
      const bool ends_here = text.substr(0, end).ends_with(stops[i]);
      if (ends_here && (!best || stops[i].size() > stops[*best].size())) best = i;
    }
    if (best) return {text.substr(0, end - stops[*best].size()), best};
  }
  return {text, std::nullopt};
}

TEST(StopMatcher, AgreesWithTheDefinitionHoweverTheTextIsCut) {
  std::mt19937 random(4);
  const auto below = [&](size_t limit) {
    return std::uniform_int_distribution<size_t>(0, limit - 1)(random);
  };
  const auto text_of = [&](size_t length) {
    std::string text;
    while (text.size() < length) text.push_back("abc"[below(3)]);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = below(4); i > 0; --i) stops.push_back(text_of(1 + below(5)));
    const std::string text = text_of(below(30));
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t length = below(4);
      pieces.push_back(text.substr(at, length));
      at += length;
    }
    EXPECT_EQ(Matched(stops, pieces), Definition(stops, text)) << text;
  }
}

TEST(StopMatcher, RefusesBadStopStringsByField) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"ok", ""}, "stop[1]"},
      {{"\xFF"}, "stop[0]"},
      {{std::string(StopMatcher::kMaxStopBytes + 1, 'a')}, "stop[0]"},
      {std::vector<std::string>(StopMatcher::kMaxStops + 1, "a"), "stop"},
  };
  for (const auto& [stops, field] : cases) {
    const auto status = StopMatcher::Create(stops).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(common::InfoOf(status).field, field);
  }
}

}  // namespace
}  // namespace loopserve::worker
