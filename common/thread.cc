#include "common/thread.h"

#include <pthread.h>

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace loopserve::common {
namespace {

// What ShareOut and its helpers share. Helpers that come late find it, but no call left, and do not
// touch `task`, which has gone by then.
class SharedOut final {
 public:
  SharedOut(size_t count, absl::FunctionRef<void(size_t)> task) : count_(count), task_(task) {}
  void Work() {
    size_t done = 0;
    for (size_t i = next_++; i < count_; i = next_++, ++done) task_(i);
    if (done == 0) return;
    absl::MutexLock lock(&mutex_);
    done_ += done;
  }
  void AwaitAll() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &SharedOut::AllDone));
  }

 private:
  bool AllDone() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return done_ == count_; }

  const size_t count_;
  const absl::FunctionRef<void(size_t)> task_;
  std::atomic<size_t> next_ = 0;
  absl::Mutex mutex_;
  size_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

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

void ShareOut(ThreadPool& helpers, size_t count, absl::FunctionRef<void(size_t)> task) {
  const auto shared = std::make_shared<SharedOut>(count, task);
  for (size_t i = 1; i < count; ++i) {
    if (!helpers.Submit([shared] { shared->Work(); })) break;
  }
  shared->Work();
  shared->AwaitAll();
}

}  // namespace loopserve::common
