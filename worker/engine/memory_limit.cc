#include "worker/engine/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <optional>

namespace loopserve::worker {
namespace {

// The first number in a file; nothing when it is missing or says "max".
std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

std::optional<uint64_t> ReadMemAvailable(const std::string& path) {
  std::ifstream file(path);
  std::string name, unit;
  uint64_t kib = 0;
  while (file >> name >> kib) {
    if (name == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<uint64_t> AvailableMemory(const std::string& root) {
  const std::optional<uint64_t> machine = ReadMemAvailable(root + "/proc/meminfo");
  if (!machine) return absl::NotFoundError("/proc/meminfo does not tell MemAvailable");
  uint64_t available = *machine;
  struct Limit {
    const char* limit;
    const char* usage;
  };
  for (const Limit& cgroup : {Limit{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
                              Limit{"/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                    "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}) {
    const std::optional<uint64_t> limit = ReadNumber(root + cgroup.limit);
    if (!limit) continue;
    const uint64_t used = ReadNumber(root + cgroup.usage).value_or(0);
    available = std::min(available, *limit > used ? *limit - used : 0);
  }
  return available;
}

}  // namespace loopserve::worker
