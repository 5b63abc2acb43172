// What is said in `loopserve demo`: a fact, a long text, and questions that come back to the fact.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace loopserve::clients {

struct DemoScript {
  std::string system;
  std::string fact;                    // the first turn
  std::string long_text;               // the second turn, makes the history long
  std::vector<std::string> questions;  // the later turns
  std::string answer;                  // what each of them must mention
};

// `tokens_wanted`: about how long the long text should be.
DemoScript MakeDemoScript(int tokens_wanted);

// Whether `text` mentions `answer`, whatever the case.
bool Mentions(absl::string_view text, absl::string_view answer);

}  // namespace loopserve::clients
