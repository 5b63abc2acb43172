// UTF-8, strict where a client speaks to us and exact where we imitate another tokenizer.
//
// The server refuses invalid UTF-8 before it reaches the tokenizer (IsValidUtf8). A model, however,
// may generate any bytes, so the way out replaces what is invalid (Utf8Stream). All functions are
// pure; Utf8Stream belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"

namespace loopserve::worker {

// U+FFFD, the replacement character.
inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// What stands at the front of some bytes.
struct Utf8Step {
  enum class Kind { kCodePoint, kInvalid, kIncomplete };
  Kind kind = Kind::kIncomplete;
  // kCodePoint: its bytes. kInvalid: bytes that one U+FFFD replaces (the maximal subpart of Unicode
  // 3.9, what browsers and Python do). kIncomplete: all bytes, more may complete them.
  size_t bytes = 0;
};
Utf8Step NextUtf8(absl::string_view text);

// No overlong forms, no surrogates, nothing above U+10FFFF, nothing cut off.
bool IsValidUtf8(absl::string_view text);

// Appends the UTF-8 form of a value up to U+10FFFF; surrogates get their three-byte form.
void AppendUtf8(uint32_t code_point, std::string& out);

// Invalid UTF-8 as llama.cpp's tokenizer reads it: every byte it cannot use becomes U+FFFD on its
// own, overlong forms become the short form, surrogates pass. `matchable` has the same offsets but
// U+E000 (same category class) in place of surrogates, so it is always valid UTF-8.
struct RepairedText {
  std::string bytes;
  std::string matchable;
};
// InvalidArgument for a form above U+10FFFF, which llama.cpp cannot tokenize either.
absl::StatusOr<RepairedText> RepairUtf8(absl::string_view text);

// Bytes in, whole code points out: holds back an incomplete tail of at most three bytes.
class Utf8Stream {
 public:
  // Appends to `out` what `bytes` completes.
  void Push(absl::string_view bytes, std::string& out);
  // The stream ends: a held tail becomes one U+FFFD.
  void Flush(std::string& out);

 private:
  std::string held_;
};

}  // namespace loopserve::worker
