// A pod that a test plays: it takes what a PodConnection sends, and answers as it is told.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/support/status_matchers.h"
#include "worker/pod/pod_connection.h"
#include "worker/pod/wire_status.h"

namespace loopserve::testing {

class FakePod {
 public:
  explicit FakePod(worker::RankRange ranks = {1, 2})
      : connection(std::make_shared<worker::PodConnection>(
            ranks, "p1",
            worker::PodConnection::Wire{.send =
                                            [this](pod::v1::JoinResponse message, bool) {
                                              absl::MutexLock lock(&mutex_);
                                              sent_.push_back(std::move(message));
                                            },
                                        .end =
                                            [this] {
                                              absl::MutexLock lock(&mutex_);
                                              ended_ = true;
                                            }})) {}

  // The next message that it was sent; waits for it.
  pod::v1::JoinResponse Take() {
    absl::MutexLock lock(&mutex_);
    const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !sent_.empty(); };
    mutex_.Await(absl::Condition(&any));
    pod::v1::JoinResponse message = std::move(sent_.front());
    sent_.pop_front();
    return message;
  }
  bool ended() const {
    absl::MutexLock lock(&mutex_);
    return ended_;
  }

  absl::Status StepDone(uint64_t step, const absl::Status& status = absl::OkStatus(),
                        std::vector<uint64_t> calls = {5, 6}) {
    pod::v1::JoinRequest message;
    message.mutable_step_done()->set_step(step);
    worker::StatusToProto(status, message.mutable_step_done()->mutable_status());
    message.mutable_step_done()->mutable_calls()->Add(calls.begin(), calls.end());
    return connection->On(message);
  }
  absl::Status Alive(uint64_t step, std::vector<uint64_t> calls) {
    pod::v1::JoinRequest message;
    message.mutable_alive()->set_step(step);
    message.mutable_alive()->mutable_calls()->Add(calls.begin(), calls.end());
    return connection->On(message);
  }
  absl::Status CopyDone(uint64_t tag, const absl::Status& status = absl::OkStatus(),
                        const std::string& block = "") {
    pod::v1::JoinRequest message;
    message.mutable_copy_done()->set_tag(tag);
    worker::StatusToProto(status, message.mutable_copy_done()->mutable_status());
    message.mutable_copy_done()->set_block(block);
    return connection->On(message);
  }

 private:
  mutable absl::Mutex mutex_;
  std::deque<pod::v1::JoinResponse> sent_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;

 public:
  const std::shared_ptr<worker::PodConnection> connection;  // last: it uses what is above
};

}  // namespace loopserve::testing
