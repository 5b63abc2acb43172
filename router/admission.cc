#include "router/admission.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error.h"

namespace loopserve::router {
namespace {

// Length of the well-formed sequence at the head of `text`; 0 when it is none. (Unicode table 3-7.)
size_t SequenceLength(absl::string_view text) {
  const auto byte = [text](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto tail = [&byte](size_t i) { return byte(i) >= 0x80 && byte(i) <= 0xBF; };
  const unsigned head = byte(0);
  if (head < 0x80) return 1;
  if (head >= 0xC2 && head <= 0xDF) return tail(1) ? 2 : 0;
  if (head >= 0xE0 && head <= 0xEF) {
    const unsigned low = head == 0xE0 ? 0xA0 : 0x80;
    const unsigned high = head == 0xED ? 0x9F : 0xBF;
    return byte(1) >= low && byte(1) <= high && tail(2) ? 3 : 0;
  }
  if (head >= 0xF0 && head <= 0xF4) {
    const unsigned low = head == 0xF0 ? 0x90 : 0x80;
    const unsigned high = head == 0xF4 ? 0x8F : 0xBF;
    return byte(1) >= low && byte(1) <= high && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

bool HasControlCharacter(absl::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c == 0x7F) return true;
    if (c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0) {
      return true;  // U+0080 ... U+009F
    }
  }
  return false;
}

}  // namespace

bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const size_t length = SequenceLength(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

absl::Status CheckId(absl::string_view field, absl::string_view value) {
  if (value.size() > kMaxIdBytes) {
    return common::InvalidField(
        field, absl::StrCat(field, " has ", value.size(), " bytes; at most ", kMaxIdBytes,
                            " are allowed"));
  }
  if (HasControlCharacter(value)) {
    return common::InvalidField(field, absl::StrCat(field, " has a control character"));
  }
  return absl::OkStatus();
}

Admission::Admission(const Options& options, const common::Clock& clock)
    : options_(options), clock_(clock) {}

absl::Duration Admission::RetryAfter() const {
  // The time until the present queue has passed through.
  const double rounds =
      static_cast<double>(waiting_.size() + 1) / std::max(1, options_.max_inflight);
  return absl::Seconds(std::clamp(rounds * mean_seconds_, 0.1, 30.0));
}

absl::StatusOr<Admission::Arrival> Admission::Arrive(absl::Duration patience, OnTurn on_turn) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_.Now();
  const bool room = static_cast<int>(running_.size()) < options_.max_inflight;
  if (room && waiting_.empty()) {
    running_.emplace(++last_ticket_, now);
    return Arrival{last_ticket_, 0};
  }
  if (static_cast<int>(waiting_.size()) >= options_.max_queue) {
    return common::MakeError(
        common::ErrorInfo{.reason = common::Reason::kQueueFull, .retry_after = RetryAfter()},
        absl::StrCat("the queue is full: ", waiting_.size(), " requests wait, at most ",
                     options_.max_queue, " may"));
  }
  const absl::Duration wait = std::min(patience, options_.max_queue_wait);
  waiting_.push_back({++last_ticket_, now + wait, std::move(on_turn)});
  return Arrival{last_ticket_, static_cast<int>(waiting_.size())};
}

std::vector<Admission::OnTurn> Admission::Leave(Ticket ticket) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_.Now();
  if (const auto it = running_.find(ticket); it != running_.end()) {
    const double seconds = absl::ToDoubleSeconds(now - it->second);
    mean_seconds_ += 0.1 * (seconds - mean_seconds_);
    running_.erase(it);
  } else {
    const auto waiting = std::find_if(waiting_.begin(), waiting_.end(),
                                      [ticket](const Waiting& w) { return w.ticket == ticket; });
    if (waiting != waiting_.end()) waiting_.erase(waiting);
  }
  std::vector<OnTurn> starting;
  while (!waiting_.empty() && static_cast<int>(running_.size()) < options_.max_inflight) {
    Waiting& next = waiting_.front();
    running_.emplace(next.ticket, now);
    starting.push_back(std::move(next.on_turn));
    waiting_.pop_front();
  }
  return starting;
}

std::vector<Admission::OnTurn> Admission::Expire() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_.Now();
  std::vector<OnTurn> expired;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (it->until <= now) {
      expired.push_back(std::move(it->on_turn));
      it = waiting_.erase(it);
    } else {
      ++it;
    }
  }
  return expired;
}

absl::Status Admission::QueueTimeout() {
  return common::MakeError(common::Reason::kQueueTimeout, "waited too long for a free place");
}

int Admission::inflight() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(running_.size());
}

int Admission::queued() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(waiting_.size());
}

absl::Status BusySessions::Enter(const common::SessionId& id) {
  absl::MutexLock lock(&mutex_);
  if (busy_.insert(id).second) return absl::OkStatus();
  return common::MakeError(
      common::ErrorInfo{.reason = common::Reason::kSessionBusy, .retry_after = absl::Seconds(1)},
      "a turn of this session is running");
}

void BusySessions::Leave(const common::SessionId& id) {
  absl::MutexLock lock(&mutex_);
  busy_.erase(id);
}

absl::flat_hash_set<common::SessionId> BusySessions::All() const {
  absl::MutexLock lock(&mutex_);
  return busy_;
}

}  // namespace loopserve::router
