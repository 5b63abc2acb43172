#include "common/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "absl/strings/match.h"
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

int CountNumaNodes() {
  int nodes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", error)) {
    const std::string name = entry.path().filename().string();
    if (absl::StartsWith(name, "node") &&
        name.find_first_not_of("0123456789", 4) == std::string::npos) {
      ++nodes;
    }
  }
  return std::max(1, nodes);
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
  cpus.numa_nodes = CountNumaNodes();
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
