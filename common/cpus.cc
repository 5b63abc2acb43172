#include "common/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace loopserve::common {
namespace {

// The system call fills no more than the kernel has CPUs, and refuses a set that is smaller.
constexpr int kMostCpus = 1 << 16;

class CpuSet final {
 public:
  CpuSet() : set_(CPU_ALLOC(kMostCpus)) { CPU_ZERO_S(bytes(), set_); }
  ~CpuSet() { CPU_FREE(set_); }
  CpuSet(const CpuSet&) = delete;
  CpuSet& operator=(const CpuSet&) = delete;
  static size_t bytes() { return CPU_ALLOC_SIZE(kMostCpus); }
  cpu_set_t* get() { return set_; }

 private:
  cpu_set_t* const set_;
};

// The numbers of the entries node0, node1, ... of a directory of the system's.
std::vector<int> NodesIn(const std::string& directory) {
  std::vector<int> nodes;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    int node = 0;
    if (absl::StartsWith(name, "node") && absl::SimpleAtoi(name.substr(4), &node)) {
      nodes.push_back(node);
    }
  }
  return nodes;
}

}  // namespace

absl::StatusOr<PinThreads> ParsePinThreads(absl::string_view text) {
  if (text == "auto") return PinThreads::kAuto;
  if (text == "on") return PinThreads::kOn;
  if (text == "off") return PinThreads::kOff;
  return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not auto, on or off"));
}

Cpus ReadCpus() {
  Cpus cpus;
  CpuSet set;
  if (sched_getaffinity(0, CpuSet::bytes(), set.get()) == 0) {
    for (int cpu = 0; cpu < kMostCpus; ++cpu) {
      if (CPU_ISSET_S(cpu, CpuSet::bytes(), set.get())) cpus.allowed.push_back(cpu);
    }
  }
  cpus.online = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  if (cpus.allowed.empty()) {
    for (int cpu = 0; cpu < cpus.online; ++cpu) cpus.allowed.push_back(cpu);
  }
  cpus.numa_nodes = std::max(1, static_cast<int>(NodesIn("/sys/devices/system/node").size()));
  return cpus;
}

bool ShouldPin(PinThreads pin, const Cpus& cpus, int threads) {
  if (pin != PinThreads::kAuto) return pin == PinThreads::kOn;
  const auto allowed = static_cast<int>(cpus.allowed.size());
  return threads >= allowed && (allowed < cpus.online || cpus.numa_nodes > 1);
}

std::vector<int> CpusOfThreads(const std::vector<int>& allowed, int before, int threads) {
  std::vector<int> out;
  for (int i = 0; i < threads; ++i) {
    out.push_back(allowed[static_cast<size_t>(before + i) % allowed.size()]);
  }
  return out;
}

std::vector<int> NumaNodesOf(std::span<const int> cpus) {
  std::vector<int> seen;
  std::vector<int> out;
  for (const int cpu : cpus) {
    const std::vector<int> nodes = NodesIn(absl::StrCat("/sys/devices/system/cpu/cpu", cpu));
    if (nodes.size() != 1) return std::vector<int>(cpus.size(), 0);
    const auto at = std::find(seen.begin(), seen.end(), nodes.front());
    out.push_back(static_cast<int>(at - seen.begin()));
    if (at == seen.end()) seen.push_back(nodes.front());
  }
  return out;
}

absl::Status PinThisThread(int cpu) {
  CpuSet set;
  if (cpu < 0 || cpu >= kMostCpus) {
    return absl::FailedPreconditionError(absl::StrCat("there is no CPU ", cpu));
  }
  CPU_SET_S(static_cast<size_t>(cpu), CpuSet::bytes(), set.get());
  if (sched_setaffinity(0, CpuSet::bytes(), set.get()) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cannot run on CPU ", cpu, ": ", std::strerror(errno)));
}

}  // namespace loopserve::common
