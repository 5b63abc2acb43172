#include "worker/engine/turn_ledger.h"

#include <utility>

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

bool TurnLedger::HasRoom(const std::string& tenant) const {
  if (waiting_ < max_queue_) return true;
  return waiting_ < 2 * max_queue_ && !waiting_of_.empty() && !waiting_of_.contains(tenant);
}

absl::StatusOr<TurnTicket> TurnLedger::Enter(const std::string& tenant) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return StoppingError();
  if (!HasRoom(tenant)) {
    return Retryable(common::Reason::kQueueFull,
                     absl::StrCat(waiting_, " turns wait already, the limit is ", max_queue_));
  }
  ++waiting_;
  ++waiting_of_[tenant];
  const TurnTicket ticket(next_++);
  live_.emplace(ticket, Turn{.tenant = tenant});
  return ticket;
}

void TurnLedger::EndWait(Turn& turn) {
  if (!std::exchange(turn.waits, false)) return;
  --waiting_;
  const auto count = waiting_of_.find(turn.tenant);
  if (--count->second == 0) waiting_of_.erase(count);
}

void TurnLedger::Admitted(TurnTicket ticket) {
  absl::MutexLock lock(&mutex_);
  if (const auto turn = live_.find(ticket); turn != live_.end()) EndWait(turn->second);
}

void TurnLedger::Leave(TurnTicket ticket) {
  absl::MutexLock lock(&mutex_);
  const auto turn = live_.find(ticket);
  if (turn == live_.end()) return;
  EndWait(turn->second);
  live_.erase(turn);
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
