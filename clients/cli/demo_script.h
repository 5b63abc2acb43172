// What is said in `loopserve demo`: a fact, a long text, and questions that come back to the fact.
// Chosen so that a model of 135 million parameters, decoding greedily, answers them.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace loopserve::clients {

inline constexpr char kDemoFact[] = "The code word is teal. What is the code word?";
inline constexpr char kDemoAsideQuestion[] = "Where were the boats?";
inline constexpr char kDemoBackQuestion[] = "I am back. What is the code word?";
inline constexpr char kDemoWorkerQuestion[] = "Do you remember the code word?";
inline constexpr char kDemoRestartQuestion[] = "What was the code word I told you first?";
inline constexpr char kDemoAnswer[] = "teal";

// Notes about a village, `sentences` long (13 to 14 tokens each), ending in a question.
std::string DemoLongMessage(int sentences);

// Whether `text` has `answer` in it, whatever the case.
bool Mentions(absl::string_view text, absl::string_view answer);

}  // namespace loopserve::clients
