// Which CPUs this process may use, and which thread of a computation runs on which of them.
//
// Threads that compute in lockstep wait for the slowest: one that the system moves to a CPU that
// another of them holds, or away from the memory that it filled, holds up all. Pinning helps where
// the CPUs are the process's own and hurts where they are shared, so `auto` pins only when the
// threads fill all CPUs that the process may use, and those are a part of the machine that somebody
// chose for it (taskset, a cpuset, Kubernetes' static policy) or span several NUMA nodes.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace loopserve::common {

enum class PinThreads { kAuto, kOn, kOff };

// "auto", "on" or "off"; InvalidArgument for anything else.
absl::StatusOr<PinThreads> ParsePinThreads(absl::string_view text);

struct Cpus {
  std::vector<int>
      allowed;     // of the calling thread, ascending; threads that it starts inherit them
  int online = 1;  // of the machine
  int numa_nodes = 1;
};
Cpus ReadCpus();

// Whether so many threads are to be pinned.
bool ShouldPin(PinThreads pin, const Cpus& cpus, int threads);

// The CPU of each thread of a group, given that `before` threads of the process come first: no CPU
// twice until all have one.
std::vector<int> CpusOfThreads(const std::vector<int>& allowed, int before, int threads);

// The NUMA node of each CPU, numbered 0, 1, ... as they come up; all 0 where the system does not
// say.
std::vector<int> NumaNodesOf(std::span<const int> cpus);

// FailedPrecondition where the system refuses: the thread then runs where it did.
absl::Status PinThisThread(int cpu);

}  // namespace loopserve::common
