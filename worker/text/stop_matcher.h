// Watches a stream of text for stop strings, wherever the stream is cut into pieces.
//
// Text that might be the beginning of a stop string is held back, so nothing of a stop string is
// ever emitted. The first stop string to be complete ends the stream (the longest, if several end
// at the same byte). Time is linear in the text × the number of stop strings. One thread.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"

namespace loopserve::worker {

class StopMatcher {
 public:
  static constexpr size_t kMaxStops = 64;
  static constexpr size_t kMaxStopBytes = 4096;

  // InvalidArgument, naming the field "stop", for too many, an empty, an overlong or a non-UTF-8
  // stop string.
  static absl::StatusOr<StopMatcher> Create(std::vector<std::string> stops);

  // Appends to `out` what `text` makes certain. Once stopped, nothing more comes out.
  void Push(absl::string_view text, std::string& out);
  // The stream ends: appends what was held back.
  void Flush(std::string& out);

  bool stopped() const { return matched_.has_value(); }
  // Which stop string ended the stream, as an index into those given.
  std::optional<size_t> matched() const { return matched_; }

 private:
  // One stop string and how much of it the text's end matches (Knuth, Morris and Pratt).
  struct Stop {
    std::string text;
    std::vector<size_t> fallback;  // [i]: the next shorter match when i bytes matched
    size_t matched_bytes = 0;
  };
  explicit StopMatcher(std::vector<Stop> stops) : stops_(std::move(stops)) {}
  static Stop MakeStop(std::string text);
  static void Advance(Stop& stop, char byte);

  std::vector<Stop> stops_;
  std::string held_;
  std::optional<size_t> matched_;
};

}  // namespace loopserve::worker
