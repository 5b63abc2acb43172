// How much memory this process can still get: what the kernel calls available, or what the
// container's limit leaves, whichever is less.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace loopserve::worker {

// `root` is where /proc and /sys lie: "" but in tests. NotFound when /proc/meminfo does not tell.
absl::StatusOr<uint64_t> AvailableMemory(const std::string& root = "");

}  // namespace loopserve::worker
