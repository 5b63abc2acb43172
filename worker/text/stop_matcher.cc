#include "worker/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "worker/text/utf8.h"

namespace loopserve::worker {

absl::StatusOr<StopMatcher> StopMatcher::Create(std::vector<std::string> stops) {
  if (stops.size() > kMaxStops) {
    return common::InvalidField(
        "stop", absl::StrCat("holds ", stops.size(), " strings; allowed are ", kMaxStops));
  }
  std::vector<Stop> made;
  for (size_t i = 0; i < stops.size(); ++i) {
    const std::string field = absl::StrCat("stop[", i, "]");
    if (stops[i].empty()) return common::InvalidField(field, "is empty");
    if (stops[i].size() > kMaxStopBytes) {
      return common::InvalidField(
          field, absl::StrCat("holds ", stops[i].size(), " bytes; allowed are ", kMaxStopBytes));
    }
    if (!IsValidUtf8(stops[i])) return common::InvalidField(field, "is not valid UTF-8");
    made.push_back(MakeStop(std::move(stops[i])));
  }
  return StopMatcher(std::move(made));
}

StopMatcher::Stop StopMatcher::MakeStop(std::string text) {
  Stop stop{.text = std::move(text)};
  stop.fallback.assign(stop.text.size() + 1, 0);
  size_t matched = 0;
  for (size_t i = 1; i < stop.text.size(); ++i) {
    while (matched > 0 && stop.text[i] != stop.text[matched]) matched = stop.fallback[matched];
    if (stop.text[i] == stop.text[matched]) ++matched;
    stop.fallback[i + 1] = matched;
  }
  return stop;
}

void StopMatcher::Advance(Stop& stop, char byte) {
  size_t& matched = stop.matched_bytes;
  while (matched > 0 && stop.text[matched] != byte) matched = stop.fallback[matched];
  if (stop.text[matched] == byte) ++matched;
}

void StopMatcher::Push(absl::string_view text, std::string& out) {
  if (stopped()) return;
  if (stops_.empty()) {
    absl::StrAppend(&out, text);
    return;
  }
  const size_t held_before = held_.size();
  absl::StrAppend(&held_, text);
  size_t keep = 0;  // bytes at the end that may belong to a stop string
  for (size_t at = held_before; at < held_.size(); ++at) {
    keep = 0;
    size_t stop_bytes = 0;
    for (size_t i = 0; i < stops_.size(); ++i) {
      Advance(stops_[i], held_[at]);
      const size_t matched = stops_[i].matched_bytes;
      keep = std::max(keep, matched);
      if (matched == stops_[i].text.size() && matched > stop_bytes) {
        stop_bytes = matched;
        matched_ = i;
      }
    }
    if (stopped()) {
      out.append(held_, 0, at + 1 - stop_bytes);
      held_.clear();
      return;
    }
  }
  if (text.empty()) return;
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
}

void StopMatcher::Flush(std::string& out) {
  out.append(held_);
  held_.clear();
}

}  // namespace loopserve::worker
