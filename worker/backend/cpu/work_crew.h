// WorkCrew: the threads of one backend, which split one op at a time between them.
//
// An op of a decode step takes microseconds, so a finished worker looks out for the next one for a
// moment before it sleeps, and nothing is allocated per op. Who computes which part changes no
// result: parts are independent, their boundaries fixed by the caller.
//
// Thread rule: one thread (the backend's owner) calls For; it works along.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

namespace loopserve::worker::cpu {

class WorkCrew final {
 public:
  // threads includes the caller; 0: all cores that the process may use. Thread i is pinned to
  // cpus[i], as far as the system allows: all but the caller, which is not the crew's.
  explicit WorkCrew(int threads, std::span<const int> cpus = {});
  ~WorkCrew();
  WorkCrew(const WorkCrew&) = delete;
  WorkCrew& operator=(const WorkCrew&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls part(begin, end, thread) over [0, count) in runs of up to `grain` items, each item once,
  // and returns when all are done. `part` must not call For.
  template <class Part>
  void For(int64_t count, int64_t grain, Part&& part) {
    using Body = std::remove_reference_t<Part>;
    Run(count, grain, &part, [](const void* context, int64_t begin, int64_t end, int thread) {
      (*const_cast<Body*>(static_cast<const Body*>(context)))(begin, end, thread);
    });
  }

 private:
  using Call = void (*)(const void* context, int64_t begin, int64_t end, int thread);
  void Run(int64_t count, int64_t grain, const void* context, Call call);
  void TakeParts(int thread);
  bool Join();
  void WorkerLoop(int thread);

  // The op at hand: written by the owner while the gate is closed.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 1;
  alignas(64) std::atomic<int64_t> next_{0};
  // Low half: workers inside the op. High half: odd while the op may be joined. A worker that wakes
  // up too late finds the gate closed, and nobody waits for it.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint32_t> round_{0};  // raised per op: what idle workers wait on
  std::atomic<bool> stopping_{false};
  std::vector<std::jthread> workers_;
};

}  // namespace loopserve::worker::cpu
