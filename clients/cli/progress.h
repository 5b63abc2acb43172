// Progress of long work on standard error: a line that redraws itself on a terminal; elsewhere one
// line per step, and at most one line per 10 s while a step counts up.
//
// Thread rule: one thread.
#pragma once

#include <iosfwd>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace loopserve::clients {

class Progress {
 public:
  Progress(std::ostream& stream, bool is_terminal);
  ~Progress();

  // A new step; what was shown before stays only on a log, not on a terminal.
  void Step(absl::string_view text);
  // The same step counts up; `fraction` in [0, 1] draws a bar, below 0 none.
  void Update(absl::string_view text, double fraction = -1);
  // A line that stays.
  void Say(absl::string_view text);
  // Removes the redrawn line.
  void Clear();

 private:
  void Redraw(absl::string_view text);

  std::ostream& stream_;
  const bool is_terminal_;
  bool drawn_ = false;
  absl::Time last_line_;
};

}  // namespace loopserve::clients
