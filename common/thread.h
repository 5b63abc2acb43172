// Named threads and a small pool for blocking work (file and network I/O).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
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

// Calls task(0) ... task(count - 1) on this thread and on those of `helpers` that are free, and
// returns when all calls have returned: helpers that are busy hold nothing up.
void ShareOut(ThreadPool& helpers, size_t count, absl::FunctionRef<void(size_t)> task);

}  // namespace loopserve::common
