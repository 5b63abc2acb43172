// Turns one turn's tokens, as they are sampled, into text that can be sent at once.
//
// Token → bytes → whole code points (an incomplete one waits, an invalid one becomes U+FFFD once
// certain) → stop strings (a possible beginning of one waits). So what comes out is always valid
// UTF-8 and never part of a stop string; the pieces joined do not depend on how tokens were cut.
// One decoder per turn, one thread; the tokenizer must outlive it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/text/stop_matcher.h"
#include "worker/text/tokenizer.h"
#include "worker/text/utf8.h"

namespace loopserve::worker {

class IncrementalDecoder {
 public:
  struct Options {
    std::vector<std::string> stops;
    bool show_control = false;  // spell control tokens out instead of dropping them
  };
  // InvalidArgument naming the field for a stop string that StopMatcher refuses.
  static absl::StatusOr<IncrementalDecoder> Create(const Tokenizer& tokenizer, Options options);

  // The text that this token makes certain; often empty, and always after a stop.
  std::string Push(TokenId id);
  // The turn is over: what was still waiting.
  std::string Flush();

  // A stop string was completed; its text and all behind it are withheld.
  bool stopped() const { return stops_.stopped(); }
  // Which one, as an index into Options::stops.
  std::optional<size_t> matched_stop() const { return stops_.matched(); }

 private:
  IncrementalDecoder(const Tokenizer& tokenizer, StopMatcher stops, bool show_control)
      : tokenizer_(&tokenizer), show_control_(show_control), stops_(std::move(stops)) {}

  const Tokenizer* tokenizer_;
  bool show_control_;
  Utf8Stream utf8_;
  StopMatcher stops_;
};

}  // namespace loopserve::worker
