// Finds tokens that are recognised in text by their spelling, before any word is cut: user-defined
// tokens always, control tokens only for text that we wrote ourselves.
//
// Longer spellings win over shorter ones wherever they stand, not only at the same place: all
// occurrences of the longest are taken out, then those of the next in what is left, as the models'
// own tokenizers do. Time is the text's length × the number of different spelling lengths.
// Immutable; safe from any thread.
#pragma once

#include <bitset>
#include <cstddef>
#include <vector>
#include "absl/strings/string_view.h"

#include "absl/container/flat_hash_map.h"
#include "common/ids.h"

namespace loopserve::worker {

// A stretch [begin, end) of the text: plain text, or the token spelled there.
struct TextSpan {
  static constexpr common::TokenId kPlain = -1;
  size_t begin = 0;
  size_t end = 0;
  common::TokenId token = kPlain;
  bool operator==(const TextSpan&) const = default;
};

class SpecialTokens {
 public:
  // `spelling` is not empty, not yet known, and must outlive this.
  void Add(absl::string_view spelling, common::TokenId token);
  // Covers the text without gaps, in order; empty text has no spans.
  std::vector<TextSpan> Partition(absl::string_view text) const;

 private:
  // All spellings of one length in bytes.
  struct Group {
    size_t bytes = 0;
    std::bitset<256> first_bytes;
    absl::flat_hash_map<absl::string_view, common::TokenId> tokens;
  };
  static void PartitionSpan(const Group& group, absl::string_view text, const TextSpan& span,
                            std::vector<TextSpan>& out);

  std::vector<Group> groups_;  // longest first
};

}  // namespace loopserve::worker
