#include "worker/engine/turn_ledger.h"

#include "absl/strings/str_cat.h"
#include "common/error.h"

namespace loopserve::worker {
namespace {

constexpr absl::Duration kRetryAfter = absl::Milliseconds(500);

absl::Status Retryable(common::Reason reason, absl::string_view message) {
  common::ErrorInfo info;
  info.reason = reason;
  info.retry_after = kRetryAfter;
  return common::MakeError(std::move(info), message);
}

}  // namespace

absl::Status StoppingError() {
  return Retryable(common::Reason::kDraining, "the worker is stopping");
}

absl::StatusOr<TurnTicket> TurnLedger::Enter() {
  absl::MutexLock lock(&mutex_);
  if (closed_) return StoppingError();
  if (waiting_ >= max_queue_) {
    return Retryable(common::Reason::kQueueFull,
                     absl::StrCat(waiting_, " turns wait already, the limit is ", max_queue_));
  }
  ++waiting_;
  const TurnTicket ticket(next_++);
  live_.insert(ticket);
  return ticket;
}

void TurnLedger::Admitted() {
  absl::MutexLock lock(&mutex_);
  --waiting_;
}

void TurnLedger::Leave(TurnTicket ticket, bool was_waiting) {
  absl::MutexLock lock(&mutex_);
  if (was_waiting) --waiting_;
  live_.erase(ticket);
}

bool TurnLedger::Contains(TurnTicket ticket) const {
  absl::MutexLock lock(&mutex_);
  return live_.contains(ticket);
}

void TurnLedger::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

bool TurnLedger::AwaitEmpty(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(this, &TurnLedger::Empty), timeout);
}

int64_t TurnLedger::size() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(live_.size());
}

int64_t TurnLedger::waiting() const {
  absl::MutexLock lock(&mutex_);
  return waiting_;
}

}  // namespace loopserve::worker
