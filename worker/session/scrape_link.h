// ScrapeLink: refreshes gauges before every scrape, as long as the object that knows their values
// lives. Metrics outlive what they measure, and may be scraped while it goes away.
//
// Thread rule: the refresh runs on the scraper's thread, never during or after the destruction.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"

namespace loopserve::worker {

// Make it the last member, so that it goes first.
class ScrapeLink final {
 public:
  ScrapeLink(common::Metrics& metrics, std::function<void()> refresh)
      : state_(std::make_shared<State>()) {
    {
      absl::MutexLock lock(&state_->mutex);
      state_->refresh = std::move(refresh);
    }
    metrics.OnScrape([state = state_] {
      absl::MutexLock lock(&state->mutex);
      if (state->refresh) state->refresh();
    });
  }
  ~ScrapeLink() {
    absl::MutexLock lock(&state_->mutex);
    state_->refresh = nullptr;
  }
  ScrapeLink(const ScrapeLink&) = delete;
  ScrapeLink& operator=(const ScrapeLink&) = delete;

 private:
  struct State {
    absl::Mutex mutex;
    std::function<void()> refresh ABSL_GUARDED_BY(mutex);
  };
  const std::shared_ptr<State> state_;
};

}  // namespace loopserve::worker
