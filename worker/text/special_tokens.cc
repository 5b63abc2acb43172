#include "worker/text/special_tokens.h"

#include <algorithm>
#include <utility>

namespace loopserve::worker {

void SpecialTokens::Add(absl::string_view spelling, common::TokenId token) {
  auto it = std::find_if(groups_.begin(), groups_.end(),
                         [&](const Group& group) { return group.bytes <= spelling.size(); });
  if (it == groups_.end() || it->bytes != spelling.size()) {
    it = groups_.insert(it, Group{.bytes = spelling.size()});
  }
  it->first_bytes.set(static_cast<uint8_t>(spelling[0]));
  it->tokens.emplace(spelling, token);
}

std::vector<TextSpan> SpecialTokens::Partition(absl::string_view text) const {
  std::vector<TextSpan> spans;
  if (text.empty()) return spans;
  spans.push_back({0, text.size()});
  for (const Group& group : groups_) {
    std::vector<TextSpan> next;
    for (const TextSpan& span : spans) {
      if (span.token == TextSpan::kPlain && span.end - span.begin >= group.bytes) {
        PartitionSpan(group, text, span, next);
      } else {
        next.push_back(span);
      }
    }
    spans = std::move(next);
  }
  return spans;
}

void SpecialTokens::PartitionSpan(const Group& group, absl::string_view text, const TextSpan& span,
                                  std::vector<TextSpan>& out) {
  size_t plain_from = span.begin;
  size_t at = span.begin;
  while (at + group.bytes <= span.end) {
    if (group.first_bytes.test(static_cast<uint8_t>(text[at]))) {
      const auto it = group.tokens.find(text.substr(at, group.bytes));
      if (it != group.tokens.end()) {
        if (at > plain_from) out.push_back({plain_from, at});
        out.push_back({at, at + group.bytes, it->second});
        at += group.bytes;
        plain_from = at;
        continue;
      }
    }
    ++at;
  }
  if (plain_from < span.end) out.push_back({plain_from, span.end});
}

}  // namespace loopserve::worker
