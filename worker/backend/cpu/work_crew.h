// WorkCrew: the threads of one backend, which split one op at a time between them.
//
// An op of a decode step takes microseconds, so a finished worker looks out for the next one for a
// moment before it sleeps, and nothing is allocated per op. Who computes which part changes no
// result: parts are independent, their boundaries fixed by the caller.
//
// On a machine of several NUMA nodes, data that a thread has written first lies near it. ForHomes
// gives each node items of its own, always the same ones, so that whoever packs a part of a matrix
// is near those who read it later; threads that have run out of their own node's items take
// others'.
//
// Thread rule: one thread (the backend's owner) calls For; it works along.
#pragma once

#include <array>
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
  // cpus[i], as far as the system allows: all but the caller, which is not the crew's. nodes[i] is
  // the NUMA node of thread i, counted from 0; empty: all on one.
  explicit WorkCrew(int threads, std::span<const int> cpus = {}, std::span<const int> nodes = {});
  ~WorkCrew();
  WorkCrew(const WorkCrew&) = delete;
  WorkCrew& operator=(const WorkCrew&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  int nodes() const { return static_cast<int>(node_threads_.size()); }

  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
    int64_t size() const { return end - begin; }
  };
  // The items of [0, count) that belong to a node: as many as it has of the threads.
  Range HomeOf(int64_t count, int node) const;

  // Calls part(begin, end, thread) over [0, count) in runs of up to `grain` items, each item once,
  // and returns when all are done. `part` must not call For.
  template <class Part>
  void For(int64_t count, int64_t grain, Part&& part) {
    using Body = std::remove_reference_t<Part>;
    Run({&count, 1}, grain, &part,
        [](const void* context, int, int64_t begin, int64_t end, int thread) {
          (*const_cast<Body*>(static_cast<const Body*>(context)))(begin, end, thread);
        });
  }

  // Calls part(node, begin, end, thread) over [0, counts[node]) of every node, likewise. counts has
  // nodes() entries.
  template <class Part>
  void ForHomes(std::span<const int64_t> counts, int64_t grain, Part&& part) {
    using Body = std::remove_reference_t<Part>;
    Run(counts, grain, &part,
        [](const void* context, int node, int64_t begin, int64_t end, int thread) {
          (*const_cast<Body*>(static_cast<const Body*>(context)))(node, begin, end, thread);
        });
  }

  static constexpr int kMaxNodes = 16;  // threads of further ones count as the last one's

 private:
  using Call = void (*)(const void* context, int node, int64_t begin, int64_t end, int thread);
  void Run(std::span<const int64_t> counts, int64_t grain, const void* context, Call call);
  void TakeParts(int thread);
  bool Join();
  void WorkerLoop(int thread);

  // The op at hand: written by the owner while the gate is closed.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int64_t grain_ = 1;
  size_t lists_count_ = 1;
  struct alignas(64) List {
    std::atomic<int64_t> next{0};
    int64_t count = 0;
  };
  std::array<List, kMaxNodes> lists_;
  // Low half: workers inside the op. High half: odd while the op may be joined. A worker that wakes
  // up too late finds the gate closed, and nobody waits for it.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint32_t> round_{0};  // raised per op: what idle workers wait on
  std::atomic<bool> stopping_{false};
  std::vector<int> node_of_;       // by thread
  std::vector<int> node_threads_;  // by node
  std::vector<std::jthread> workers_;
};

}  // namespace loopserve::worker::cpu
