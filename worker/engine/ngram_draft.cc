#include "worker/engine/ngram_draft.h"

#include <algorithm>
#include <bit>

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr size_t kLeastSlots = 256;
constexpr size_t kMostSlots = size_t{1} << 16;

}  // namespace

NgramDraft::NgramDraft(size_t max_tokens)
    : mask_(std::clamp(std::bit_ceil(2 * max_tokens), kLeastSlots, kMostSlots) - 1) {
  for (std::vector<int32_t>& slots : after_) slots.resize(mask_ + 1);
}

size_t NgramDraft::SlotOf(std::span<const TokenId> gram) const {
  uint64_t hash = gram.size();
  for (const TokenId token : gram) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x9e3779b97f4a7c15ULL;
    hash ^= hash >> 29;
  }
  return static_cast<size_t>(hash) & mask_;
}

void NgramDraft::Extend(std::span<const TokenId> text) {
  for (; indexed_ < text.size(); ++indexed_) {
    for (size_t length = kShortest; length <= std::min(kLongest, indexed_); ++length) {
      const size_t slot = SlotOf(text.subspan(indexed_ - length, length));
      after_[length - kShortest][slot] = static_cast<int32_t>(indexed_);
    }
  }
}

size_t NgramDraft::Propose(std::span<const TokenId> text, size_t most,
                           std::vector<TokenId>& draft) const {
  draft.clear();
  for (size_t length = std::min(kLongest, text.size()); length >= kShortest; --length) {
    const auto gram = text.last(length);
    const auto at = static_cast<size_t>(after_[length - kShortest][SlotOf(gram)]);
    if (at == 0 || !std::ranges::equal(text.subspan(at - length, length), gram)) continue;
    for (size_t i = 0; i < most; ++i) {
      const size_t from = at + i;
      draft.push_back(from < text.size() ? text[from] : draft[from - text.size()]);
    }
    return length;
  }
  return 0;
}

}  // namespace loopserve::worker
