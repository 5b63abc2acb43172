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

WorkCrew::WorkCrew(int threads, std::span<const int> cpus) {
  if (threads <= 0) threads = static_cast<int>(common::ReadCpus().allowed.size());
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

void WorkCrew::TakeParts(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    call_(context_, begin, std::min(begin + grain_, count_), thread);
  }
}

void WorkCrew::Run(int64_t count, int64_t grain, const void* context, Call call) {
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      call(context, begin, std::min(begin + grain, count), 0);
    }
    return;
  }
  call_ = call;
  context_ = context;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
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
