#include "worker/backend/cpu/work_crew.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/cpus.h"
#include "common/thread.h"

namespace loopserve::worker::cpu {
namespace {

// About 50 microseconds: longer than the gap between two ops of a step.
constexpr int kSpins = 2000;

constexpr uint64_t kOpen = uint64_t{1} << 32;  // lowest bit of the gate's high half
constexpr uint64_t kInside = kOpen - 1;

void Pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

}  // namespace

WorkCrew::WorkCrew(int threads, std::span<const int> cpus, std::span<const int> nodes) {
  if (threads <= 0) threads = static_cast<int>(common::ReadCpus().allowed.size());
  for (size_t i = 0; i < static_cast<size_t>(threads); ++i) {
    const int node = i < nodes.size() ? std::clamp(nodes[i], 0, kMaxNodes - 1) : 0;
    node_of_.push_back(node);
    if (node_threads_.size() <= static_cast<size_t>(node)) {
      node_threads_.resize(static_cast<size_t>(node) + 1);
    }
    ++node_threads_[static_cast<size_t>(node)];
  }
  for (int i = 1; i < threads; ++i) {
    const int cpu = static_cast<size_t>(i) < cpus.size() ? cpus[static_cast<size_t>(i)] : -1;
    workers_.push_back(
        common::NamedThread(absl::StrCat("compute-", i), [this, i, cpu](std::stop_token) {
          // Refused: slower, not wrong.
          if (cpu >= 0) common::PinThisThread(cpu).IgnoreError();
          WorkerLoop(i);
        }));
  }
}

WorkCrew::~WorkCrew() {
  stopping_.store(true);
  round_.fetch_add(1);
  round_.notify_all();
}

WorkCrew::Range WorkCrew::HomeOf(int64_t count, int node) const {
  int64_t before = 0;
  for (int n = 0; n < node; ++n) before += node_threads_[static_cast<size_t>(n)];
  const int64_t own = node_threads_[static_cast<size_t>(node)];
  return {count * before / threads(), count * (before + own) / threads()};
}

void WorkCrew::TakeParts(int thread) {
  const auto home = static_cast<size_t>(node_of_[static_cast<size_t>(thread)]);
  for (size_t i = 0; i < lists_count_; ++i) {
    const size_t node = (home + i) % lists_count_;
    List& list = lists_[node];
    for (;;) {
      const int64_t begin = list.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= list.count) break;
      call_(context_, static_cast<int>(node), begin, std::min(begin + grain_, list.count), thread);
    }
  }
}

void WorkCrew::Run(std::span<const int64_t> counts, int64_t grain, const void* context, Call call) {
  int64_t total = 0;
  for (const int64_t count : counts) total += std::max<int64_t>(0, count);
  if (total == 0) return;
  if (workers_.empty() || total <= grain) {
    for (size_t node = 0; node < counts.size(); ++node) {
      for (int64_t begin = 0; begin < counts[node]; begin += grain) {
        call(context, static_cast<int>(node), begin, std::min(begin + grain, counts[node]), 0);
      }
    }
    return;
  }
  call_ = call;
  context_ = context;
  grain_ = grain;
  lists_count_ = counts.size();
  for (size_t node = 0; node < counts.size(); ++node) {
    lists_[node].count = counts[node];
    lists_[node].next.store(0, std::memory_order_relaxed);
  }
  gate_.fetch_add(kOpen, std::memory_order_release);
  round_.fetch_add(1);
  round_.notify_all();
  TakeParts(0);
  gate_.fetch_add(kOpen, std::memory_order_relaxed);
  for (int spins = 0; (gate_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
    if (spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

bool WorkCrew::Join() {
  uint64_t seen = gate_.load(std::memory_order_acquire);
  while ((seen & kOpen) != 0) {
    if (gate_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void WorkCrew::WorkerLoop(int thread) {
  uint32_t seen = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    for (int spins = 0; round_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) {
      Pause();
    }
    round_.wait(seen);
    seen = round_.load();
    if (Join()) {
      TakeParts(thread);
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }
}

}  // namespace loopserve::worker::cpu
