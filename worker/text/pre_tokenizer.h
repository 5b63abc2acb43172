// The first half of byte-level BPE: text is cut into words, and merges never cross a cut.
//
// Each model family has its own cut rules, one or more regular expressions applied in turn: a pass
// isolates its matches inside every piece the pass before left, and what lies between the matches
// stays a piece too. A piece is matched as if nothing surrounded it.
//
// Character classes are those of Unicode 15.1, whatever the PCRE2 at hand was built with (14.0 adds
// the missing ranges here), because the models' tokens are trained and compared with them.
// Immutable after Create; Split is safe from any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>
#include "absl/strings/string_view.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace loopserve::worker {

class PreTokenizer {
 public:
  // `name` is GGUF's tokenizer.ggml.pre. InvalidArgument, naming what is supported, for any other;
  // Internal where PCRE2 refuses a pattern.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(absl::string_view name);
  virtual ~PreTokenizer() = default;

  // End offsets of the pieces of `text` in order; the last is text.size(). `text` must be valid
  // UTF-8. ResourceExhausted where a match limit is hit, which the patterns here cannot reach.
  virtual absl::StatusOr<std::vector<size_t>> Split(absl::string_view text) const = 0;

  // A word that is a token as a whole is taken as such, without merging (Llama 3).
  virtual bool ignores_merges() const = 0;
  // Whether a beginning-of-text token is added where the model file does not say.
  virtual bool adds_bos_by_default() const = 0;
};

}  // namespace loopserve::worker
