// Byte quantities as people write them: "8GiB", "512 MiB", "4096".
#pragma once

#include <cstdint>
#include <string>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"

namespace loopserve::common {

constexpr uint64_t operator""_KiB(unsigned long long n) { return n << 10; }
constexpr uint64_t operator""_MiB(unsigned long long n) { return n << 20; }
constexpr uint64_t operator""_GiB(unsigned long long n) { return n << 30; }

// Accepts B, KiB, MiB, GiB, TiB and KB, MB, GB, TB (powers of ten), with a fraction: "1.5GiB".
absl::StatusOr<uint64_t> ParseBytes(absl::string_view text);
// "22.5 MiB": three significant digits, powers of two.
std::string FormatBytes(uint64_t bytes);

}  // namespace loopserve::common
