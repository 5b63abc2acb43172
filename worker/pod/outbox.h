// Outbox: messages on their way out of one stream, written by a thread of their own, so that who
// has something to say never waits for the network. Bulk, which is KV, goes out when nothing else
// waits.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/thread.h"

namespace loopserve::worker {

template <typename Message>
class Outbox final {
 public:
  // `write` returns false when the stream has ended. `beat`, unless null, makes a message that goes
  // out every `every` beside the others.
  Outbox(std::string name, std::function<bool(const Message&)> write,
         std::function<Message()> beat = nullptr, absl::Duration every = absl::InfiniteDuration())
      : write_(std::move(write)), beat_(std::move(beat)), every_(every) {
    thread_ = common::NamedThread(std::move(name), [this](std::stop_token) {
      Run();
      absl::MutexLock lock(&mutex_);
      over_ = true;
    });
  }
  // The stream's other users have to end it before if its writes may wait for good.
  ~Outbox() { Close(); }

  // False when the stream has ended; the message is then lost.
  bool Send(Message message, bool bulk = false) {
    absl::MutexLock lock(&mutex_);
    if (closed_) return false;
    (bulk ? bulk_ : urgent_).push_back(std::move(message));
    return true;
  }

  // Writes no more. Waits for nothing.
  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  // Close, and wait for the write that is under way: false when it has not ended within `timeout`.
  bool CloseAndWait(absl::Duration timeout) {
    Close();
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&over_), timeout);
  }

 private:
  bool Stirred() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return closed_ || !urgent_.empty() || !bulk_.empty();
  }

  void Run() {
    absl::Time next = absl::Now() + every_;
    while (true) {
      std::optional<Message> message;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.AwaitWithDeadline(absl::Condition(this, &Outbox::Stirred), next);
        if (closed_) return;
        std::deque<Message>& queue = urgent_.empty() ? bulk_ : urgent_;
        if (!queue.empty() && absl::Now() < next) {
          message = std::move(queue.front());
          queue.pop_front();
        }
      }
      if (!message) {
        message = beat_();
        next = absl::Now() + every_;
      }
      if (write_(*message)) continue;
      return Close();
    }
  }

  const std::function<bool(const Message&)> write_;
  const std::function<Message()> beat_;
  const absl::Duration every_;
  absl::Mutex mutex_;
  std::deque<Message> urgent_ ABSL_GUARDED_BY(mutex_);
  std::deque<Message> bulk_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;  // nothing is written any more
  std::jthread thread_;                        // last: it uses everything above
};

}  // namespace loopserve::worker
