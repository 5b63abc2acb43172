// Named threads and a small pool for blocking work (file and network I/O).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "common/queue.h"

namespace loopserve::common {

// A thread whose name shows in `top -H` (the first 15 characters). Joins on destruction.
std::jthread NamedThread(std::string name, absl::AnyInvocable<void(std::stop_token)> body);

// Runs tasks on a fixed number of threads, in order of arrival.
// Thread rule: all calls are safe from any thread.
class ThreadPool final {
 public:
  ThreadPool(std::string name, int threads, size_t max_queued = 1 << 16);
  // Runs what is queued, then joins.
  ~ThreadPool();
  // False when max_queued tasks wait already or the pool is stopping.
  bool Submit(absl::AnyInvocable<void()> task);
  // Refuses new tasks, runs what is queued, joins. Idempotent.
  void Stop();

 private:
  BoundedQueue<absl::AnyInvocable<void()>> queue_;
  std::vector<std::jthread> threads_;
};

}  // namespace loopserve::common
