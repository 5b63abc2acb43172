#include "common/thread.h"

#include <pthread.h>

namespace loopserve::common {

std::jthread NamedThread(std::string name, absl::AnyInvocable<void(std::stop_token)> body) {
  return std::jthread(
      [name = std::move(name), body = std::move(body)](std::stop_token stop) mutable {
        pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
        body(stop);
      });
}

ThreadPool::ThreadPool(std::string name, int threads, size_t max_queued) : queue_(max_queued) {
  for (int i = 0; i < threads; ++i) {
    threads_.push_back(NamedThread(name, [this](std::stop_token) {
      while (auto task = queue_.Pop()) (*task)();
    }));
  }
}

ThreadPool::~ThreadPool() { Stop(); }

bool ThreadPool::Submit(absl::AnyInvocable<void()> task) { return queue_.TryPush(std::move(task)); }

void ThreadPool::Stop() {
  queue_.Close();
  threads_.clear();
}

}  // namespace loopserve::common
