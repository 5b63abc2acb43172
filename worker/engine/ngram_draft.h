// NgramDraft: guesses how a text goes on from how it went on before.
//
// The last few tokens are looked up among all earlier ones; what followed them there is the guess
// (prompt lookup decoding). Pure host logic: the engine verifies guesses with the model, so a wrong
// one costs a row and never a token.
//
// The index maps the hash of every 4, 3 and 2 successive tokens to the place where the text went on
// after them, the newest place for each hash: constant time for each token, bounded memory.
//
// Thread rule: one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"

namespace loopserve::worker {

class NgramDraft final {
 public:
  static constexpr size_t kShortest = 2;
  static constexpr size_t kLongest = 4;

  // For a text that will have at most `max_tokens`.
  explicit NgramDraft(size_t max_tokens);

  // `text` is what the last call was given, and maybe more.
  void Extend(std::span<const common::TokenId> text);

  // Replaces `draft` by up to `most` tokens that may follow `text`, which Extend has seen. A text
  // that repeats itself is followed beyond its end. Returns how many of the last tokens were found
  // before, 0 for none.
  size_t Propose(std::span<const common::TokenId> text, size_t most,
                 std::vector<common::TokenId>& draft) const;

 private:
  size_t SlotOf(std::span<const common::TokenId> gram) const;

  size_t indexed_ = 0;
  size_t mask_;
  // By length of the gram: where the text went on, 0 for nowhere.
  std::array<std::vector<int32_t>, kLongest - kShortest + 1> after_;
};

}  // namespace loopserve::worker
