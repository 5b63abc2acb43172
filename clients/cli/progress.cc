#include "clients/cli/progress.h"

#include <algorithm>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace loopserve::clients {
namespace {

constexpr absl::Duration kLineInterval = absl::Seconds(10);
constexpr int kBarWidth = 30;
constexpr char kClearLine[] = "\r\x1b[2K";

std::string Bar(double fraction) {
  const int filled = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * kBarWidth);
  return absl::StrCat("[", std::string(filled, '#'), std::string(kBarWidth - filled, '.'), "] ",
                      absl::StrFormat("%3.0f%% ", fraction * 100));
}

}  // namespace

Progress::Progress(std::ostream& stream, bool is_terminal)
    : stream_(stream), is_terminal_(is_terminal), last_line_(absl::Now()) {}

Progress::~Progress() { Clear(); }

void Progress::Redraw(absl::string_view text) {
  stream_ << kClearLine << text << std::flush;
  drawn_ = true;
}

void Progress::Step(absl::string_view text) {
  if (is_terminal_) return Redraw(text);
  stream_ << text << std::endl;
  last_line_ = absl::Now();
}

void Progress::Update(absl::string_view text, double fraction) {
  if (is_terminal_)
    return Redraw(fraction < 0 ? std::string(text) : absl::StrCat(Bar(fraction), text));
  if (absl::Now() - last_line_ < kLineInterval) return;
  stream_ << text << std::endl;
  last_line_ = absl::Now();
}

void Progress::Say(absl::string_view text) {
  Clear();
  stream_ << text << std::endl;
}

void Progress::Clear() {
  if (drawn_) stream_ << kClearLine << std::flush;
  drawn_ = false;
}

}  // namespace loopserve::clients
