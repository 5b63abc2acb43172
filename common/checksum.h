// Checksums and content hashes. crc32c guards bytes against damage; hash128 names content.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include "absl/strings/string_view.h"

namespace loopserve::common {

// CRC-32C (Castagnoli), in hardware where the processor has it. `crc` continues a previous value.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);

struct Hash128 {
  uint64_t hi = 0;
  uint64_t lo = 0;
  auto operator<=>(const Hash128&) const = default;
  std::string Hex() const;  // 32 lower-case digits
  template <typename H>
  friend H AbslHashValue(H h, const Hash128& v) {
    return H::combine(std::move(h), v.hi, v.lo);
  }
};

// XXH3-128. Not cryptographic: whoever looks content up by it verifies what was found.
Hash128 HashBytes(std::span<const std::byte> bytes, uint64_t seed = 0);
Hash128 HashString(absl::string_view text, uint64_t seed = 0);

}  // namespace loopserve::common
